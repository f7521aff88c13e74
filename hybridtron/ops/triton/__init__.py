"""Operations by Triton kernels: functions with their own gradients, which launch what lies in `kernels`."""
