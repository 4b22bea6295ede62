// Which pages of a paged cache a call needs, and whether block_table names them.
#ifndef FOVEA_LIB_PAGES_H_
#define FOVEA_LIB_PAGES_H_

#include "fovea/fovea.h"

namespace fovea {

// Of checked params, data pointers included: every entry of block_table that holds a key which some row may attend to
// (any key at all, for scores RAW and SOFT_CAPPED) must be a page. Other entries are not looked at, or may be anything.
// Mask and bias are read only where an entry that causality, window and length permit is not a page.
fovea_status CheckPages(const fovea_attention_params& p);

}  // namespace fovea

#endif  // FOVEA_LIB_PAGES_H_
