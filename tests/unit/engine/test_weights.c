/* Weights that outlive their engine: what another shard of the same model needs stays where it
 * lies, the rest gives its memory back, and either way every byte is what a fresh load gives. */
#include "base/log.h"
#include "engine/weights.h"
#include "tiny_model.h"

#include <fcntl.h>
#include <ggml-backend.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

#include <cmocka.h>

static const struct tiny_shape shape = {.n_layer = 6,
                                        .n_embd = 64,
                                        .n_ff = 160,
                                        .n_head = 6,
                                        .n_head_kv = 3,
                                        .head_dim = 16,
                                        .n_vocab = 200};

struct subject { /* a shard and its weights */
    struct shard shard;
    struct weights *weights;
};

static const struct weights_target processors = {.repack = true};

static void load(const struct model *m, const char *split_text, uint32_t n_ranks, uint32_t rank,
                 struct weights *kept, struct subject *ret)
{
    struct split split;
    struct error err = {0};
    if (split_parse(split_text, n_ranks, m->config.n_layer, NULL, &split, &err) != 0 ||
        shard_init(&ret->shard, m, &split, rank, &err) != 0 ||
        weights_load(m, &ret->shard, &processors, kept, &ret->weights, &err) != 0)
        fail_msg("%s", err.message);
}

static uint64_t all_bytes(const struct weights *w)
{
    return weights_bytes(w);
}

static void done(struct subject *s)
{
    weights_free(s->weights);
    shard_done(&s->shard);
}

static void check_same(const struct ggml_tensor *a, const struct ggml_tensor *b)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a == NULL)
        return;
    assert_int_equal(ggml_nbytes(a), ggml_nbytes(b));
    assert_true(ggml_backend_buffer_get_type(a->buffer) == ggml_backend_buffer_get_type(b->buffer));
    assert_ptr_equal(a->extra, b->extra); /* ggml's choice of layout */
    assert_memory_equal(a->data, b->data, ggml_nbytes(a));
}

/* Loads what rank has in the second split, with and without the weights of the first one. */
static uint64_t change(const struct model *m, const char *from, uint32_t n_from, uint32_t from_rank,
                       const char *to, uint32_t n_to, uint32_t to_rank)
{
    struct subject old, fresh, kept;
    load(m, from, n_from, from_rank, NULL, &old);
    load(m, to, n_to, to_rank, NULL, &fresh);
    load(m, to, n_to, to_rank, old.weights, &kept); /* takes old's */
    shard_done(&old.shard);
    for (enum role role = 0; role < ROLE_FIRST_OF_LAYER; role++)
        check_same(kept.weights->global[role], fresh.weights->global[role]);
    for (uint32_t i = 0; i < kept.shard.layers.end - kept.shard.layers.begin; i++)
        for (enum role role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
            check_same(kept.weights->layer[i][role], fresh.weights->layer[i][role]);
    uint64_t bytes_kept = kept.weights->bytes_kept, bytes = all_bytes(fresh.weights);
    assert_int_equal(all_bytes(kept.weights), bytes);
    assert_int_equal(weights_bytes_held(kept.weights), weights_bytes_held(fresh.weights));
    assert_int_equal(fresh.weights->bytes_kept, 0);
    assert_true(bytes_kept <= bytes);
    done(&fresh);

    /* Once more, from weights that lie in more than one piece. */
    struct subject again;
    load(m, to, n_to, to_rank, kept.weights, &again);
    shard_done(&kept.shard);
    assert_int_equal(again.weights->bytes_kept, bytes);
    done(&again);
    return bytes_kept;
}

static void check_changes(const struct model *m)
{
    uint32_t n = m->config.n_layer;
    struct subject middle, whole;
    load(m, "pipeline", 3, 1, NULL, &middle); /* some layers and nothing else */
    uint64_t middle_bytes = all_bytes(middle.weights);
    uint64_t layer_bytes = middle_bytes / (middle.shard.layers.end - middle.shard.layers.begin);
    done(&middle);
    load(m, "pipeline", 1, 0, NULL, &whole);
    uint64_t whole_bytes = all_bytes(whole.weights);
    done(&whole);
    assert_true(change(m, "pipeline", 3, 0, "pipeline", 2, 0) >= n / 3 * layer_bytes);
    assert_true(change(m, "pipeline", 3, 1, "pipeline", 2, 1) >= n / 6 * layer_bytes);
    assert_true(change(m, "pipeline", 3, 2, "pipeline", 2, 1) >= n / 3 * layer_bytes);
    assert_int_equal(change(m, "pipeline", 3, 1, "pipeline", 1, 0), middle_bytes);
    assert_true(change(m, "pipeline", 1, 0, "pipeline", 2, 1) >= n / 2 * layer_bytes);
    assert_int_equal(change(m, "pipeline", 1, 0, "pipeline", 1, 0), whole_bytes);
    assert_int_equal(change(m, "pipeline", 2, 0, "pipeline", 2, 1), 0);
    /* Slices of matrices do not fit another split; norms and the embedding table do. */
    uint64_t bytes = change(m, "tensor", 2, 0, "pipeline", 1, 0);
    assert_true(bytes > 0);
    assert_true(bytes < whole_bytes - n * layer_bytes / 2);
}

static void kept_weights_are_the_same(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct model *m;
    tiny_model_init(&tiny, &shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    check_changes(m);
    struct subject whole;
    load(m, "pipeline", 1, 0, NULL, &whole);
    const struct ggml_tensor *t = whole.weights->global[ROLE_TOKEN_EMBD];
    assert_memory_equal(t->data, tiny_weight(&tiny, -1, "token_embd"), ggml_nbytes(t));
    done(&whole);
    model_close(m);
    tiny_model_done(&tiny);
}

/* Weights of another model, or of a file that has changed since, are of no use. */
static void other_weights_are_freed(void **state)
{
    (void)state;
    struct tiny_shape other_shape = shape;
    struct tiny_model tiny, other;
    struct model *m, *o;
    struct subject a, b;
    other_shape.n_vocab++;
    tiny_model_init(&tiny, &shape);
    tiny_model_init(&other, &other_shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    assert_int_equal(model_open(other.path, &o, NULL), 0);
    load(m, "pipeline", 1, 0, NULL, &a);
    load(o, "pipeline", 1, 0, a.weights, &b);
    shard_done(&a.shard);
    assert_int_equal(b.weights->bytes_kept, 0);

    struct timespec long_ago[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, other.path, long_ago, 0), 0);
    load(o, "pipeline", 1, 0, b.weights, &a);
    shard_done(&b.shard);
    assert_int_equal(a.weights->bytes_kept, 0);

    /* They are taken also when nothing can be loaded. */
    struct weights *w;
    unlink(other.path);
    assert_int_equal(weights_load(o, &a.shard, &processors, a.weights, &w, NULL), E_IO);
    shard_done(&a.shard);
    model_close(m);
    model_close(o);
    tiny_model_done(&tiny);
    tiny_model_done(&other);
}

/* ---- on a real model, whose matrices are repacked (skipped without one) ---- */

/* Memory that is no page of a file, and its peak since the last reset. */
static uint64_t read_status(const char *field)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    if (f == NULL)
        return 0;
    while (fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, field, strlen(field)) == 0)
            sscanf(line + strlen(field), ": %llu", &kib);
    fclose(f);
    return kib * 1024;
}

static void memory_goes_back(void **state)
{
    (void)state;
    const char *folder = getenv("SHOAL_TEST_MODELS");
    char path[4096];
    struct model *m;
    struct subject s[2];
    snprintf(path, sizeof(path), "%s/gemma3.gguf", folder != NULL ? folder : "");
    if (folder == NULL || access(path, R_OK) != 0)
        skip();
    assert_int_equal(model_open(path, &m, NULL), 0);
    check_changes(m);

    /* There and back: what is resident stays what the shard says, but for parts of pages and of
     * huge pages. */
    static const struct {
        uint32_t n_ranks, rank;
    } story[] = {{1, 0}, {2, 0}, {3, 1}, {2, 1}, {1, 0}, {3, 2}, {2, 0}, {1, 0}};
    enum { SLACK_BYTES = 6 << 20 };
#if defined(__has_feature)
    const bool has_shadow = __has_feature(thread_sanitizer); /* of all memory that is written */
#else
    const bool has_shadow = false;
#endif
    uint64_t before = read_status("RssAnon");
    struct weights *kept = NULL;
    for (size_t i = 0; i < sizeof(story) / sizeof(story[0]); i++) {
        load(m, "pipeline", story[i].n_ranks, story[i].rank, kept, &s[0]);
        kept = s[0].weights;
        uint64_t held = weights_bytes_held(kept), resident = read_status("RssAnon");
        print_message("%u of %u: %.1f MiB held, %.1f MiB kept, %.1f MiB resident\n", story[i].rank,
                      story[i].n_ranks, (double)held / 0x1p20, (double)kept->bytes_kept / 0x1p20,
                      ((double)resident - (double)before) / 0x1p20);
        if (resident != 0 && !has_shadow)
            assert_true(resident < before + held + SLACK_BYTES);
        assert_true(held > 0);
        shard_done(&s[0].shard);
    }
    weights_free(kept);
    if (before != 0 && !has_shadow)
        assert_true(read_status("RssAnon") < before + SLACK_BYTES);
    model_close(m);
}

static void be_quiet(enum ggml_log_level level, const char *text, void *arg)
{
    (void)level;
    (void)text;
    (void)arg;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_weights_are_the_same),
        cmocka_unit_test(other_weights_are_freed),
        cmocka_unit_test(memory_goes_back),
    };
    ggml_log_set(be_quiet, NULL);
    log_configure("warn", NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
