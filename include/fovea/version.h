/* fovea: version macros. C99. The soname is FOVEA_VERSION_MAJOR; meson.build reads all three numbers from here. */
#ifndef FOVEA_VERSION_H_
#define FOVEA_VERSION_H_

#define FOVEA_VERSION_MAJOR 0
#define FOVEA_VERSION_MINOR 1
#define FOVEA_VERSION_PATCH 0
#define FOVEA_VERSION_STRING "0.1.0"
/* 10000 * major + 100 * minor + patch, as fovea_version() returns it. */
#define FOVEA_VERSION (10000 * FOVEA_VERSION_MAJOR + 100 * FOVEA_VERSION_MINOR + FOVEA_VERSION_PATCH)

#endif /* FOVEA_VERSION_H_ */
