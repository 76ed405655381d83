# The transport tests once more with ranks that mpirun starts, where MPI is installed.
if(TARGET MPI::MPI_C AND MPIEXEC_EXECUTABLE AND NOT SHOAL_SANITIZE MATCHES thread)
    foreach(name forms inbox transports)
        add_test(NAME unit.comm.mpi_${name}
            COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 5 $<TARGET_FILE:test_comm_${name}> mpi)
        # Open MPI wants to be asked before it runs as root, or more ranks than cores; MPI keeps memory until the end.
        set_tests_properties(unit.comm.mpi_${name} PROPERTIES LABELS unit TIMEOUT 300 SKIP_RETURN_CODE 77 PROCESSORS 2
            ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_rmaps_base_oversubscribe=1;ASAN_OPTIONS=detect_leaks=0")
    endforeach()
endif()
