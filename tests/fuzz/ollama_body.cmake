shoal_fuzz_target(ollama_body api)
