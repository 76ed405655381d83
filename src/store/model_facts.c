#include "store/model_facts.h"

#include "model/arch.h"
#include "model/dtype.h"
#include "model/gguf.h"

#include <stdio.h>
#include <string.h>

/* general.file_type; source: GGUF specification and llama.h (enum llama_ftype). */
static const char *const file_types[] = {
    [0] = "F32",      [1] = "F16",      [2] = "Q4_0",    [3] = "Q4_1",    [7] = "Q8_0",
    [8] = "Q5_0",     [9] = "Q5_1",     [10] = "Q2_K",   [11] = "Q3_K_S", [12] = "Q3_K_M",
    [13] = "Q3_K_L",  [14] = "Q4_K_S",  [15] = "Q4_K_M", [16] = "Q5_K_S", [17] = "Q5_K_M",
    [18] = "Q6_K",    [19] = "IQ2_XXS", [20] = "IQ2_XS", [21] = "Q2_K_S", [22] = "IQ3_XS",
    [23] = "IQ3_XXS", [24] = "IQ1_S",   [25] = "IQ4_NL", [26] = "IQ3_S",  [27] = "IQ3_M",
    [28] = "IQ2_S",   [29] = "IQ2_M",   [30] = "IQ4_XS", [31] = "IQ1_M",  [32] = "BF16",
    [36] = "TQ1_0",   [37] = "TQ2_0",   [38] = "MXFP4",
};
enum { N_FILE_TYPES = sizeof(file_types) / sizeof(file_types[0]) };

/* Printable, and cut to fit: names in files are anybody's. */
static void copy_string(const struct gguf_file *f, const char *key, char *ret, size_t size)
{
    struct gguf_string s;
    size_t n = 0;
    if (gguf_file_get_string(f, key, &s, NULL) == 0)
        for (size_t i = 0; i < s.len && n + 1 < size; i++)
            ret[n++] = s.data[i] >= ' ' && s.data[i] < 0x7f ? s.data[i] : '?';
    ret[n] = '\0';
}

static uint32_t get_number(const struct gguf_file *f, const char *architecture, const char *what)
{
    char key[128];
    uint64_t v = 0;
    snprintf(key, sizeof(key), "%s.%s", architecture, what);
    return gguf_file_get_u64(f, key, &v, NULL) == 0 && v <= UINT32_MAX ? (uint32_t)v : 0;
}

static void name_quantization(const struct gguf_file *f, struct model_entry *e)
{
    uint64_t type, bytes[64] = {0};
    size_t most = 0;
    if (gguf_file_get_u64(f, "general.file_type", &type, NULL) == 0 && type < N_FILE_TYPES &&
        file_types[type] != NULL) {
        snprintf(e->quantization, sizeof(e->quantization), "%s", file_types[type]);
        return;
    }
    for (size_t i = 0; i < gguf_file_n_tensors(f); i++) {
        const struct gguf_tensor *t = gguf_file_tensor(f, i);
        if (t->type < 64)
            bytes[t->type] += t->size_bytes;
    }
    for (size_t i = 0; i < 64; i++)
        most = bytes[i] > bytes[most] ? i : most;
    const struct dtype_traits *traits = dtype_traits((uint32_t)most);
    if (traits != NULL && bytes[most] > 0)
        snprintf(e->quantization, sizeof(e->quantization), "%s", traits->name);
}

/* The chat template tells what a model was trained to do. */
static uint32_t find_capabilities(const struct gguf_file *f, const char *architecture)
{
    struct gguf_string t;
    char pooling[128];
    uint64_t type;
    snprintf(pooling, sizeof(pooling), "%s.pooling_type", architecture);
    if (gguf_file_get_u64(f, pooling, &type, NULL) == 0 && type != 0)
        return CAPABILITY_EMBEDDING;
    uint32_t bits = CAPABILITY_COMPLETION;
    if (gguf_file_get_string(f, "tokenizer.chat_template", &t, NULL) != 0)
        return bits;
    if (memmem(t.data, t.len, "tools", 5) != NULL)
        bits |= CAPABILITY_TOOLS;
    if (memmem(t.data, t.len, "<think>", 7) != NULL ||
        memmem(t.data, t.len, "enable_thinking", 15) != NULL ||
        memmem(t.data, t.len, "reasoning_effort", 16) != NULL)
        bits |= CAPABILITY_THINKING;
    return bits;
}

static uint64_t count_params(const struct gguf_file *f)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < gguf_file_n_tensors(f); i++) {
        const struct gguf_tensor *t = gguf_file_tensor(f, i);
        sum += t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3];
    }
    return sum;
}

void model_facts_of(const struct gguf_file *f, struct model_entry *e)
{
    copy_string(f, "general.name", e->title, sizeof(e->title));
    copy_string(f, "general.architecture", e->architecture, sizeof(e->architecture));
    e->n_layers = get_number(f, e->architecture, "block_count");
    e->n_ctx = get_number(f, e->architecture, "context_length");
    e->n_params = count_params(f);
    e->capabilities = find_capabilities(f, e->architecture);
    e->can_run = arch_find(e->architecture, strlen(e->architecture)) != NULL;
    name_quantization(f, e);
}

void model_facts_read(const char *path, struct model_entry *e)
{
    struct gguf_file *f = NULL;
    struct error err = {0};
    if (gguf_file_open(path, &f, &err) != 0) {
        e->is_damaged = true;
        snprintf(e->problem, sizeof(e->problem), "%.*s", (int)sizeof(e->problem) - 1, err.message);
        return;
    }
    model_facts_of(f, e);
    gguf_file_close(f);
}
