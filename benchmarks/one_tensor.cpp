// one_tensor: the least that a LibTorch program can do; `startup` times it.
#include <ATen/Functions.h>

int main() { return at::ones({2, 2}).numel() == 4 ? 0 : 1; }
