shoal_fuzz_target(chat_template text)
