#include "model_maker.h"

#include "base/rng.h"
#include "gguf_writer.h"
#include "model/dtype.h"

#include <ggml.h>

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_ELEMS (1u << 20) /* rows are made in groups of about this size */
#define TENSORS_MAX 65536
#define VOCAB_MIN   272 /* more than the built-in vocabulary needs */

/* A tensor to write: random when source is NULL. */
struct plan {
    char name[64];
    uint32_t n_dims, type;
    uint64_t dim[4];
    const struct gguf_tensor *source;
};

struct job {
    const struct maker_options *options;
    struct gguf_writer writer;
    struct plan *plan; /* [n_plans] */
    size_t n_plans;
    int fd; /* of the source model */
    float *rows;
    uint8_t *packed, *stored;
    struct error *err;
};

/* The type for rows of n elements: K-quants need multiples of 256, where a plainer type takes their
 * place. */
static uint32_t fitting_type(uint32_t type, uint64_t n)
{
    if (dtype_row_bytes(type, n) > 0)
        return type;
    return dtype_row_bytes(DTYPE_Q8_0, n) > 0 ? DTYPE_Q8_0 : DTYPE_F16;
}

static int add_plan(struct job *j, const char *name, enum role role, uint64_t row, uint64_t n_rows,
                    const struct gguf_tensor *source)
{
    if (j->n_plans == TENSORS_MAX)
        return error_set(j->err, E_LIMIT, "more than %d tensors", TENSORS_MAX);
    struct plan *p = &j->plan[j->n_plans++];
    snprintf(p->name, sizeof(p->name), "%s", name);
    p->n_dims = n_rows > 0 ? 2 : 1;
    p->dim[0] = row;
    p->dim[1] = n_rows > 0 ? n_rows : 1;
    p->dim[2] = p->dim[3] = 1;
    p->source = source;
    p->type =
        n_rows > 0 ? fitting_type((uint32_t)j->options->type[role], row) : (uint32_t)DTYPE_F32;
    writer_tensor(&j->writer, p->name, p->n_dims, p->dim, p->type,
                  dtype_row_bytes(p->type, row) * p->dim[1]);
    return 0;
}

/* Numbers close to normal, with the given deviation: each is the sum of the four bytes of a 32-bit
 * number. */
static void fill_random(const struct job *j, size_t tensor, uint64_t first, size_t n,
                        float deviation)
{
    const uint32_t key[2] = {(uint32_t)j->options->seed, (uint32_t)(j->options->seed >> 32)};
    const float scale = deviation / 147.8f; /* of the sum of four uniform bytes */
    for (size_t i = 0; i < n; i += 4) {
        uint64_t block = (first + i) / 4;
        uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)tensor,
                               0x6d6f646c},
                 bits[4];
        rng_block(key, counter, bits);
        for (size_t k = 0; k < 4 && i + k < n; k++) {
            uint32_t sum =
                (bits[k] & 255) + (bits[k] >> 8 & 255) + (bits[k] >> 16 & 255) + (bits[k] >> 24);
            j->rows[i + k] = ((float)sum - 510.0f) * scale;
        }
    }
}

static int read_at(const struct job *j, uint64_t offset, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(j->fd, j->stored + done, n - done, (off_t)(offset + done));
        if (got <= 0)
            return error_set(j->err, E_IO, "reading byte %" PRIu64 " of %s", offset + done,
                             j->options->source);
        done += (size_t)got;
    }
    return 0;
}

/* Rows [row, row + n_rows) of the source as floats. */
static int load_rows(const struct job *j, const struct gguf_tensor *t, uint64_t row,
                     uint64_t n_rows)
{
    uint64_t row_bytes = dtype_row_bytes(t->type, t->dim[0]);
    size_t n_bytes = (size_t)(n_rows * row_bytes);
    int rc = read_at(j, t->offset + row * row_bytes, n_bytes);
    if (rc != 0)
        return rc;
    const struct ggml_type_traits *traits = ggml_get_type_traits((enum ggml_type)t->type);
    if (t->type == DTYPE_F32)
        memcpy(j->rows, j->stored, n_bytes);
    else if (traits->to_float == NULL)
        return error_set(j->err, E_UNSUPPORTED, "tensor '%s' of type %s cannot be read", t->name,
                         dtype_traits(t->type)->name);
    for (uint64_t i = 0; t->type != DTYPE_F32 && i < n_rows;
         i++) /* rows: whole tensors overflow some int counts */
        traits->to_float(j->stored + i * row_bytes, j->rows + i * t->dim[0], (int64_t)t->dim[0]);
    return 0;
}

static int write_tensor(struct job *j, size_t index)
{
    const struct plan *p = &j->plan[index];
    uint64_t group = p->dim[0] < CHUNK_ELEMS ? CHUNK_ELEMS / p->dim[0] : 1;
    int rc = 0;
    for (uint64_t row = 0; rc == 0 && row < p->dim[1]; row += group) {
        uint64_t n_rows = p->dim[1] - row < group ? p->dim[1] - row : group, n = n_rows * p->dim[0];
        if (p->source != NULL)
            rc = load_rows(j, p->source, row, n_rows);
        else if (p->n_dims == 1)
            for (uint64_t i = 0; i < n; i++)
                j->rows[i] = 1.0f; /* a norm */
        else
            fill_random(j, index, row * p->dim[0], (size_t)n, 1.0f / sqrtf((float)p->dim[0]));
        if (rc != 0)
            break;
        size_t n_bytes = ggml_quantize_chunk((enum ggml_type)p->type, j->rows, j->packed, 0,
                                             (int64_t)n_rows, (int64_t)p->dim[0], NULL);
        rc = writer_data(&j->writer, j->packed, n_bytes, j->err);
    }
    return rc != 0 ? rc : writer_pad(&j->writer, j->err);
}

static int write_all(struct job *j)
{
    uint64_t longest = CHUNK_ELEMS;
    for (size_t i = 0; i < j->n_plans; i++)
        longest = j->plan[i].dim[0] > longest ? j->plan[i].dim[0] : longest;
    j->rows = malloc((size_t)(longest + 4) * sizeof(float));
    j->packed = malloc((size_t)longest * sizeof(float));
    j->stored = malloc((size_t)longest * sizeof(float));
    if (j->rows == NULL || j->packed == NULL || j->stored == NULL)
        return error_set(j->err, E_NOMEM, "no memory for %" PRIu64 " elements", longest);
    int rc = writer_open(&j->writer, j->options->output, j->err);
    for (size_t i = 0; rc == 0 && i < j->n_plans; i++)
        rc = write_tensor(j, i);
    return rc != 0 ? rc : writer_finish(&j->writer, j->err);
}

/* GPT-2's alphabet: printable bytes stand for themselves, the others for the code points from 256.
 */
static void byte_token(uint32_t byte, char text[4])
{
    uint32_t code = byte, n_before = 0;
    for (uint32_t b = 0; b <= byte; b++) {
        bool plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && !plain)
            code = 256 + n_before;
        n_before += !plain;
    }
    if (code < 128)
        snprintf(text, 4, "%c", (char)code);
    else
        snprintf(text, 4, "%c%c", (char)(0xc0 | code >> 6), (char)(0x80 | (code & 63)));
}

/* Bytes, three control tokens, a few merges, and words that no text leads to but that can be
 * printed. */
static void put_minimal_tokenizer(struct gguf_writer *w, uint32_t n_vocab)
{
    static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    static const char *const merged[] = {"\xc4\xa0t", "he", "in", "\xc4\xa0the"};
    static const char *const merges[] = {"\xc4\xa0 t", "h e", "i n", "\xc4\xa0t he"};
    char text[32];
    writer_string(w, "tokenizer.ggml.model", "gpt2");
    writer_string(w, "tokenizer.ggml.pre", "gpt-2");
    writer_array(w, "tokenizer.ggml.tokens", GGUF_KIND_STRING, n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (i < 3) {
            writer_item(w, control[i]);
        } else if (i < 259) {
            byte_token(i - 3, text);
            writer_item(w, text);
        } else if (i < 263) {
            writer_item(w, merged[i - 259]);
        } else {
            snprintf(text, sizeof(text), "\xc4\xa0w%" PRIu32, i);
            writer_item(w, text);
        }
    }
    writer_array(w, "tokenizer.ggml.token_type", GGUF_KIND_I32, n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++)
        buf_append_u32(&w->values, i < 3 ? 3 : 1); /* control, normal */
    writer_array(w, "tokenizer.ggml.merges", GGUF_KIND_STRING, 4);
    for (int i = 0; i < 4; i++)
        writer_item(w, merges[i]);
    writer_u32(w, "tokenizer.ggml.bos_token_id", 0);
    writer_u32(w, "tokenizer.ggml.eos_token_id", 2);
    writer_bool(w, "tokenizer.ggml.add_bos_token", false);
    writer_string(
        w, "tokenizer.chat_template",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + "
        "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}");
}

static void put_u32(struct gguf_writer *w, const struct maker_options *o, const char *name,
                    uint32_t v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", o->arch, name);
    writer_u32(w, key, v);
}

static void put_f32(struct gguf_writer *w, const struct maker_options *o, const char *name, float v)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", o->arch, name);
    writer_f32(w, key, v);
}

static void put_config(struct gguf_writer *w, const struct maker_options *o,
                       const struct arch *arch)
{
    char name[128];
    snprintf(name, sizeof(name), "random %s %" PRIu32 "x%" PRIu32 " seed %" PRIu64, o->arch,
             o->n_layer, o->n_embd,
             o->seed); /* the seed is part of the header, so that two seeds make two models */
    writer_string(w, "general.architecture", o->arch);
    writer_string(w, "general.name", o->name != NULL ? o->name : name);
    put_u32(w, o, "block_count", o->n_layer);
    put_u32(w, o, "context_length", o->n_ctx);
    put_u32(w, o, "embedding_length", o->n_embd);
    put_u32(w, o, "feed_forward_length", o->n_ff);
    put_u32(w, o, "attention.head_count", o->n_head);
    put_u32(w, o, "attention.head_count_kv", o->n_head_kv);
    put_u32(w, o, "attention.key_length", o->head_dim);
    put_u32(w, o, "attention.value_length", o->head_dim);
    put_u32(w, o, "rope.dimension_count", o->head_dim);
    put_u32(w, o, "vocab_size", o->n_vocab);
    put_f32(w, o, "rope.freq_base", o->rope_base);
    put_f32(w, o, "attention.layer_norm_rms_epsilon", arch->qk_norm ? 1e-6f : 1e-5f);
    if (arch->window_pattern > 0)
        put_u32(w, o, "attention.sliding_window", o->window);
}

static int plan_layer(struct job *j, const struct arch *arch, uint32_t layer)
{
    const struct maker_options *o = j->options;
    uint64_t q = (uint64_t)o->n_head * o->head_dim, kv = (uint64_t)o->n_head_kv * o->head_dim;
    const struct {
        const char *tensor;
        enum role role;
        uint64_t row, n_rows; /* n_rows 0: a vector */
        bool wanted;
    } rows[] = {
        {"attn_norm", ROLE_ATTN_NORM, o->n_embd, 0, true},
        {"attn_q", ROLE_ATTN_Q, o->n_embd, q, true},
        {"attn_k", ROLE_ATTN_K, o->n_embd, kv, true},
        {"attn_v", ROLE_ATTN_V, o->n_embd, kv, true},
        {"attn_q_norm", ROLE_ATTN_Q_NORM, o->head_dim, 0, arch->qk_norm},
        {"attn_k_norm", ROLE_ATTN_K_NORM, o->head_dim, 0, arch->qk_norm},
        {"attn_output", ROLE_ATTN_OUT, q, o->n_embd, true},
        {"post_attention_norm", ROLE_ATTN_POST_NORM, o->n_embd, 0, arch->post_norm},
        {"ffn_norm", ROLE_FFN_NORM, o->n_embd, 0, true},
        {"ffn_gate", ROLE_FFN_GATE, o->n_embd, o->n_ff, true},
        {"ffn_up", ROLE_FFN_UP, o->n_embd, o->n_ff, true},
        {"ffn_down", ROLE_FFN_DOWN, o->n_ff, o->n_embd, true},
        {"post_ffw_norm", ROLE_FFN_POST_NORM, o->n_embd, 0, arch->post_norm},
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof(rows) / sizeof(rows[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "blk.%" PRIu32 ".%s.weight", layer, rows[i].tensor);
        if (rows[i].wanted)
            rc = add_plan(j, name, rows[i].role, rows[i].row, rows[i].n_rows, NULL);
    }
    return rc;
}

static int copy_tokenizer(struct job *j, struct maker_options *o)
{
    struct gguf_file *from;
    int rc = gguf_file_open(o->tokenizer, &from, j->err);
    if (rc != 0)
        return rc;
    const struct gguf_value *tokens = gguf_file_find(from, "tokenizer.ggml.tokens");
    if (tokens == NULL || tokens->strings == NULL || tokens->count == 0 ||
        tokens->count > UINT32_MAX)
        rc = error_set(j->err, E_INVALID, "%s has no vocabulary", o->tokenizer);
    else
        o->n_vocab = (uint32_t)tokens->count;
    for (size_t i = 0; rc == 0 && i < gguf_file_n_values(from); i++) {
        const struct gguf_value *v = gguf_file_value(from, i);
        if (v->key.len > 10 && memcmp(v->key.data, "tokenizer.", 10) == 0)
            writer_copy(&j->writer, v);
    }
    gguf_file_close(from);
    return rc;
}

static int make_random(struct job *j, struct maker_options *o)
{
    const struct arch *arch = arch_find(o->arch, strlen(o->arch));
    if (arch == NULL)
        return error_set(j->err, E_INVALID, "architecture '%s' is not known", o->arch);
    o->n_ff = o->n_ff > 0 ? o->n_ff : 4 * o->n_embd;
    o->n_head_kv = o->n_head_kv > 0 ? o->n_head_kv : o->n_head;
    o->head_dim = o->head_dim > 0 ? o->head_dim : o->n_embd / o->n_head;
    if (o->n_head % o->n_head_kv != 0 || o->head_dim % 2 != 0 || o->head_dim == 0)
        return error_set(j->err, E_INVALID,
                         "%" PRIu32 " heads, %" PRIu32 " KV heads, %" PRIu32
                         " dimensions: not a shape of attention",
                         o->n_head, o->n_head_kv, o->head_dim);
    int rc = 0;
    if (o->tokenizer != NULL)
        rc = copy_tokenizer(j, o);
    else if (o->n_vocab < VOCAB_MIN)
        rc = error_set(j->err, E_INVALID, "--vocab must be %d or more", VOCAB_MIN);
    else
        put_minimal_tokenizer(&j->writer, o->n_vocab);
    if (rc != 0)
        return rc;
    put_config(&j->writer, o, arch);
    rc = add_plan(j, "token_embd.weight", ROLE_TOKEN_EMBD, o->n_embd, o->n_vocab, NULL);
    for (uint32_t l = 0; rc == 0 && l < o->n_layer; l++)
        rc = plan_layer(j, arch, l);
    if (rc == 0)
        rc = add_plan(j, "output_norm.weight", ROLE_OUTPUT_NORM, o->n_embd, 0, NULL);
    if (rc == 0 && !o->tied && !arch->embd_scale)
        rc = add_plan(j, "output.weight", ROLE_OUTPUT, o->n_embd, o->n_vocab, NULL);
    return rc != 0 ? rc : write_all(j);
}

static enum role role_of(const struct model *m, const struct gguf_tensor *t)
{
    for (int role = 0; role < ROLE_FIRST_OF_LAYER; role++)
        if (m->global[role] == t)
            return (enum role)role;
    for (uint32_t l = 0; l < m->config.n_layer; l++)
        for (int role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
            if (m->layer[l][role] == t)
                return (enum role)role;
    return ROLE_TOKEN_EMBD; /* not reached: every tensor of an open model has a role */
}

static int make_converted(struct job *j, struct maker_options *o)
{
    struct model *m;
    int rc = model_open(o->source, &m, j->err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < gguf_file_n_values(m->file); i++) {
        const struct gguf_value *v = gguf_file_value(m->file, i);
        if (v != gguf_file_find(m->file, "general.file_type") &&
            v != gguf_file_find(m->file, "general.alignment"))
            writer_copy(&j->writer, v);
    }
    for (size_t i = 0; rc == 0 && i < gguf_file_n_tensors(m->file); i++) {
        const struct gguf_tensor *t = gguf_file_tensor(m->file, i);
        rc = add_plan(j, t->name, role_of(m, t), t->dim[0], t->n_dims > 1 ? t->dim[1] : 0, t);
    }
    j->fd = open(o->source, O_RDONLY | O_CLOEXEC);
    if (rc == 0 && j->fd < 0)
        rc = error_set(j->err, E_IO, "%s cannot be opened", o->source);
    if (rc == 0)
        rc = write_all(j);
    if (j->fd >= 0)
        close(j->fd);
    model_close(m);
    return rc;
}

static int run(struct maker_options *o, int (*make)(struct job *, struct maker_options *),
               struct error *err)
{
    struct job j = {.options = o, .fd = -1, .err = err};
    writer_init(&j.writer);
    j.plan = calloc(TENSORS_MAX, sizeof(j.plan[0]));
    int rc =
        j.plan != NULL ? make(&j, o) : error_set(err, E_NOMEM, "no memory for a list of tensors");
    writer_done(&j.writer);
    free(j.plan);
    free(j.rows);
    free(j.packed);
    free(j.stored);
    return rc;
}

int maker_random(const struct maker_options *options, struct error *err)
{
    struct maker_options o = *options;
    return run(&o, make_random, err);
}

int maker_convert(const struct maker_options *options, struct error *err)
{
    struct maker_options o = *options;
    return run(&o, make_converted, err);
}
