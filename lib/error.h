// The text behind a failing status: one thread-local buffer, fovea_last_error().
#ifndef FOVEA_LIB_ERROR_H_
#define FOVEA_LIB_ERROR_H_

#include "fovea/fovea.h"

namespace fovea {

// Formats into the thread's buffer (cut, never overrun; no allocation) and returns status, so that checks read
// `return Fail(FOVEA_ERR_INVALID_ARGUMENT, "batch = %lld: must be positive", ...)`. Name the field, its value, what was wanted.
__attribute__((format(printf, 2, 3))) fovea_status Fail(fovea_status status, const char* format, ...);

// Returns what expression, a fovea_status, gives unless it is FOVEA_OK.
#define FOVEA_TRY(expression)                                           \
  do {                                                                  \
    const fovea_status fovea_try_status = (expression);                 \
    if (fovea_try_status != FOVEA_OK) return fovea_try_status;          \
  } while (0)

// Never NULL; "" before the thread's first failure.
const char* LastError();

}  // namespace fovea

#endif  // FOVEA_LIB_ERROR_H_
