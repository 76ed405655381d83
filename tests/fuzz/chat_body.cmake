shoal_fuzz_target(chat_body api)
