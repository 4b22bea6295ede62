/* fovea: symbol visibility. The library is built with hidden visibility; FOVEA_API marks the C ABI. */
#ifndef FOVEA_EXPORT_H_
#define FOVEA_EXPORT_H_

#if defined(__GNUC__) || defined(__clang__)
#define FOVEA_API __attribute__((visibility("default")))
#else
#define FOVEA_API
#endif

#endif /* FOVEA_EXPORT_H_ */
