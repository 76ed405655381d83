add_library(llhttp INTERFACE)
