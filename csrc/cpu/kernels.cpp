// The table of this instruction set's kernels.

#include "cpu/ops.h"

namespace fcn_fast::FCN_FAST_ISA {

const Kernels kernels = {bilinear_upsample,     bilinear_upsample_backward, skip_fuse,      softmax_loss,
                         softmax_loss_backward, upsample_softmax_loss,      upsample_argmax};

}  // namespace fcn_fast::FCN_FAST_ISA
