/* Options of the verbs that run ranks without a node: `run` and `bench`. Thread: the main one. */
#ifndef SHOAL_CLI_RANK_OPTIONS_H
#define SHOAL_CLI_RANK_OPTIONS_H

#include "base/error.h"
#include "model/model.h"
#include "runner/local_set.h"

#include <stdbool.h>

enum rank_option {
    RANK_OPTION_FIRST = 1024,
    RANK_OPTION_RANKS = RANK_OPTION_FIRST,
    RANK_OPTION_SPLIT,
    RANK_OPTION_COMM,
    RANK_OPTION_WIRE,
    RANK_OPTION_KV,
    RANK_OPTION_DRAFT,
    RANK_OPTION_DRAFT_MODEL,
    RANK_OPTION_CHUNK,
    RANK_OPTION_THREADS,
    RANK_OPTION_DEVICE,
    RANK_OPTION_PIN,
    RANK_OPTION_NO_REPACK,
};

/* Entries for getopt_long's table. */
/* clang-format off */
#define RANK_OPTIONS \
    {"ranks", required_argument, NULL, RANK_OPTION_RANKS}, \
    {"split", required_argument, NULL, RANK_OPTION_SPLIT}, \
    {"comm", required_argument, NULL, RANK_OPTION_COMM}, \
    {"wire", required_argument, NULL, RANK_OPTION_WIRE}, \
    {"kv", required_argument, NULL, RANK_OPTION_KV}, \
    {"draft", required_argument, NULL, RANK_OPTION_DRAFT}, \
    {"draft-model", required_argument, NULL, RANK_OPTION_DRAFT_MODEL}, \
    {"chunk", required_argument, NULL, RANK_OPTION_CHUNK}, \
    {"threads", required_argument, NULL, RANK_OPTION_THREADS}, \
    {"device", required_argument, NULL, RANK_OPTION_DEVICE}, \
    {"pin", no_argument, NULL, RANK_OPTION_PIN}, \
    {"no-repack", no_argument, NULL, RANK_OPTION_NO_REPACK}

#define RANK_OPTIONS_HELP \
    "  --ranks N          share the model among N runners (1; mpi: as mpirun says)\n" \
    "  --split HOW        pipeline (default), tensor, or SxT: S stages of T ranks\n" \
    "  --comm KIND        tcp: runners are processes; local: threads (default with one rank);\n" \
    "                     ucx: processes that talk over UCX; mpi: the processes that mpirun\n" \
    "                     started, one rank each\n" \
    "  --wire TYPE        how activations travel between ranks: f32 (default), f16, q8\n" \
    "  --kv TYPE          elements of the KV cache: f16 (default), q8\n" \
    "  --draft N          guess up to N tokens ahead from what the text repeats (0: never)\n" \
    "  --draft-model FILE a small model with the same vocabulary, which guesses where the text\n" \
    "                     does not repeat\n" \
    "  --chunk N          tokens of prompts in a step in which others decode (128)\n" \
    "  --threads N        compute threads of each rank (processors / ranks)\n" \
    "  --device NAME      what computes: cpu (default), auto (a GPU if there is one), or a name\n" \
    "                     that `shoal devices` lists; A,B: one for each rank\n" \
    "  --pin              keep each rank on one processor\n" \
    "  --no-repack        keep weights as in the file: they are mapped, not copied (slower, but\n" \
    "                     the system may drop what it has no room for)\n"
/* clang-format on */

/* Takes one of the options above. Errors: E_INVALID (names option and value). */
int rank_option_take(struct local_set_options *set, enum rank_option id, const char *value,
                     struct error *err);
/* Fills in what was not said, or what MPI knows. Errors: E_INVALID (--ranks), E_UNSUPPORTED (a
 * build without that comm), E_IO. */
int rank_options_finish(struct local_set_options *set, struct error *err);
/* A model that is larger than the memory that is free stays in its file: says so on stderr. */
void rank_options_fit(struct local_set_options *set, const struct model *model);
/* Whether this process only runs its rank, which another one drives. */
bool rank_options_follows(const struct local_set_options *set);
/* Runs that rank until the head stops. Errors: as local_set_follow. */
int rank_options_follow(const struct local_set_options *set, const char *model_name,
                        struct error *err);

#endif
