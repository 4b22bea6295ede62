#include "lib/error.h"

#include <cstdarg>
#include <cstdio>

namespace fovea {
namespace {

// Plain zero-initialized bytes: no constructor, no destructor, so a thread that never fails pays nothing.
thread_local char last_error[512];

}  // namespace

fovea_status Fail(fovea_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

const char* LastError() { return last_error; }

}  // namespace fovea
