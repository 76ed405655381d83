/*
 * The verbs of the `shoal` program: one file each, listed in main.c. A verb gets its own name as
 * argv[0] and returns the exit code. Thread: the main one.
 */
#ifndef SHOAL_CLI_CLI_H
#define SHOAL_CLI_CLI_H

#include "base/element.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int cli_run(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_runner(int argc, char **argv);
int cli_serve(int argc, char **argv);
int cli_local(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_chat(int argc, char **argv);
int cli_order(int argc, char **argv); /* plan, load, ... revoke: see orders.c */
int cli_measure(int argc, char **argv);
int cli_devices(int argc, char **argv);
int cli_profile(int argc, char **argv);
int cli_pull(int argc, char **argv);
int cli_ls(int argc, char **argv);
int cli_show(int argc, char **argv);
int cli_rm(int argc, char **argv);
int cli_ps(int argc, char **argv);

/* ---- what verbs share (common.c) ---- */

#define CLI_DEFAULT_API "http://127.0.0.1:8420" /* of a node on this computer */

/* Prints "shoal: message" on standard error and returns the error's exit code. Where mpirun started
 * this process, it ends all ranks with that instead. */
int cli_fail(const struct error *err);
/* Reads the value of an option. Errors: E_INVALID (names the option, the value and the range). */
int cli_parse_u32(const char *option, const char *text, uint32_t min, uint32_t max, uint32_t *ret,
                  struct error *err);
int cli_parse_u64(const char *option, const char *text, uint64_t *ret, struct error *err);
int cli_parse_float(const char *option, const char *text, float min, float max, float *ret,
                    struct error *err);
int cli_parse_wire(const char *option, const char *text, enum comm_wire *ret, struct error *err);
int cli_parse_kv(const char *option, const char *text, enum kv_type *ret, struct error *err);
/* A model as people name it: the path of a file, or the name of one that is here, as `shoal ls` has
 * it
 * ($XDG_DATA_HOME/shoal/models/). Errors: E_NOTFOUND (says where it looked), E_LIMIT. */
int cli_find_model(const char *name, char *ret_path, size_t size, struct error *err);
/* Compute threads of one of n_ranks ranks on this machine. */
uint32_t cli_default_threads(uint32_t n_ranks);

#endif
