#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lib/kernels/linear.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "lib/kernels/linear-inl.h"
