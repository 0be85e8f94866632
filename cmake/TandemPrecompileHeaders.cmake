# tandem_precompile_headers(TARGET): has the headers of Tandem and LibTorch read once for all C++ files of TARGET, which
# links Tandem::tandem, instead of once a file. Files still include what they use. Other targets that are compiled alike
# share the result: target_precompile_headers(OTHER REUSE_FROM TARGET).
function(tandem_precompile_headers target)
  target_precompile_headers(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:<tandem/tandem.h$<ANGLE-R>>
                                              $<$<COMPILE_LANGUAGE:CXX>:<torch/torch.h$<ANGLE-R>>)
endfunction()
