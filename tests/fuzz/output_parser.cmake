shoal_fuzz_target(output_parser text)
