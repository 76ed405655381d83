add_library(shoal_rust INTERFACE)
