/* The options of `shoal serve` as a node's configuration. Thread: the main one; names of peers are
 * resolved here, before there is a loop. */
#ifndef SHOAL_CLI_NODE_OPTIONS_H
#define SHOAL_CLI_NODE_OPTIONS_H

#include "node/node.h"

enum { NODE_API_PORT = 8420, NODE_MESH_PORT = 8421 };

/* Errors: E_INVALID, E_NOTFOUND (a peer's name), those of reading the secret's file. */
int node_options_parse(int argc, char **argv, struct node_config *ret_config, bool *ret_wants_help,
                       struct error *err);
/* $XDG_DATA_HOME/shoal, else ~/.local/share/shoal. Errors: E_INVALID when neither is set. */
int node_options_data_dir(char *ret_path, size_t size, struct error *err);

#endif
