/* What people want of a cluster, as verbs: one POST each. Thread: the main one. */
#ifndef SHOAL_CLI_ORDERS_H
#define SHOAL_CLI_ORDERS_H

#include "base/json.h"

/* Prints the answer to `shoal plan` (plan.c). */
void plan_print(const json_t *answer);

#endif
