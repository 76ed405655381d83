/*
 * What nodes say of themselves and of their links, and what placement needs to know of a model: the
 * words that the cluster's parts have in common. Figures are measured; 0 means unknown. Thread:
 * data.
 */
#ifndef SHOAL_CLUSTER_FIGURES_H
#define SHOAL_CLUSTER_FIGURES_H

#include "base/buf.h"
#include "base/error.h"
#include "model/model.h"

#include <stdbool.h>
#include <stdint.h>

/* Bounds in degrees Celsius: below 60, from 60, from 75, from 90. */
enum thermal_state {
    THERMAL_NORMAL,
    THERMAL_WARNING,
    THERMAL_THROTTLING,
    THERMAL_CRITICAL,
    THERMAL_STATE_COUNT,
};
const char *thermal_state_name(enum thermal_state state);

struct node_figures {
    uint64_t memory_bytes_total;
    uint64_t memory_bytes_free; /* that a new process could take; what our own runners hold is not
                                   in it */
    uint32_t n_cores;
    float gflops;      /* multiply-adds x 2, in matrices of 4 bits, many rows, all its threads */
    float memory_gb_s; /* reading weights, all its threads; 10^9 bytes per second */
    enum thermal_state thermal;
    bool on_battery;
    uint8_t battery_percent; /* 255: none or unknown */
};

struct link_figures {
    uint32_t rtt_us; /* of a small message, smallest of late */
    float mbit_s;    /* of bulk data, 10^6 bits per second */
    uint32_t path;   /* which way this is, as the node that says so counts its ways to the other */
};

/* A model's size and shape, so that it can be placed by a node that does not have the file. */
struct model_shape {
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx_train;
    uint64_t layer_bytes;  /* of the largest layer */
    uint64_t embd_bytes;   /* token embedding */
    uint64_t output_bytes; /* output head; the embedding's again when tied */
    uint64_t kv_token_layer_bytes;
};

void model_shape_init(struct model_shape *s, const struct model *m);
/* A shape from outside is believed only within base/limits.h. Errors: E_PROTOCOL. */
int model_shape_check(const struct model_shape *s, struct error *err);

/* Wire forms, little-endian, field by field. Decoding checks ranges and that numbers are finite.
 * Errors: those of buf_append / E_PROTOCOL. */
int node_figures_encode(struct buf *b, const struct node_figures *f);
int node_figures_decode(struct cursor *c, struct node_figures *ret, struct error *err);
int link_figures_encode(struct buf *b, const struct link_figures *f);
int link_figures_decode(struct cursor *c, struct link_figures *ret, struct error *err);
int model_shape_encode(struct buf *b, const struct model_shape *s);
int model_shape_decode(struct cursor *c, struct model_shape *ret, struct error *err);

#endif
