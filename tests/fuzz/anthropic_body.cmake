shoal_fuzz_target(anthropic_body api)
