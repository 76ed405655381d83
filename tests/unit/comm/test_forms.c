/* The forms in which values travel: one by one against arithmetic in double, then in sums. */
#include "world.h"

#include "comm/form.h"

#include <math.h>

static enum transport_kind kind;

static const enum comm_wire forms[] = {COMM_WIRE_F32, COMM_WIRE_F16, COMM_WIRE_Q8};
enum { N_FORMS = 3 };

/* ---- one vector ---- */

static double half_value(unsigned h)
{
    double m = h & 0x3ff, s = h & 0x8000 ? -1 : 1;
    int e = (int)(h >> 10 & 0x1f);
    return e == 0 ? s * ldexp(m, -24) : s * ldexp(m + 1024, e - 25);
}

/* The nearest half of a finite value, found by search; ties go to the even one. */
static unsigned nearest_half(double v)
{
    unsigned sign = signbit(v) ? 0x8000 : 0, low = 0, high = 0x7bff;
    v = fabs(v);
    if (v >= 65504)
        return sign | 0x7bff;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        *(half_value(middle) <= v ? &low : &high) = middle;
    }
    double down = v - half_value(low), up = half_value(high) - v;
    return sign | (down < up || (down == up && low % 2 == 0) ? low : high);
}

static void test_halves_exact(void **state)
{
    (void)state;
    enum { N = 0x10000 };
    static float x[N], y[N];
    static uint8_t bytes[2 * N];
    /* Each half comes back as it was. */
    for (unsigned h = 0; h < N; h++) {
        uint16_t half = (uint16_t)h;
        memcpy(bytes + 2 * h, &half, 2);
    }
    form_decode(COMM_WIRE_F16, bytes, N, x);
    for (unsigned h = 0; h < N; h++)
        if ((h & 0x7c00) != 0x7c00)
            assert_true((double)x[h] == half_value(h) && (signbit(x[h]) != 0) == (h >> 15));
        else
            assert_true(h & 0x3ff ? isnan(x[h]) : isinf(x[h]));
    /* Values between two halves, and everywhere else. */
    for (unsigned i = 0; i < N; i++) {
        uint64_t r = rng_u64(5, i, 1);
        double low = half_value(i & 0x7bfe), high = half_value((i & 0x7bfe) + 1);
        x[i] = r % 3 == 0 ? (float)((low + high) / 2) : odd_float(3, i) * (float)(1 + r % 7);
        if (i & 0x8000)
            x[i] = -x[i];
        if (r % 5 == 0)
            x[i] = nextafterf(x[i], r % 2 ? INFINITY : -INFINITY);
    }
    x[0] = 65504, x[1] = 65505, x[2] = -70000, x[3] = INFINITY, x[4] = -INFINITY, x[5] = NAN;
    x[6] = -0.0f, x[7] = 0x1p-25f, x[8] = 0x1.8p-25f, x[9] = 3e38f;
    form_encode(COMM_WIRE_F16, x, N, bytes);
    for (unsigned i = 0; i < N; i++) {
        uint16_t h;
        memcpy(&h, bytes + 2 * i, 2);
        if (isnan(x[i]))
            assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0);
        else
            assert_int_equal(h, nearest_half((double)x[i]));
    }
    form_decode(COMM_WIRE_F16, bytes, N, y);
    assert_true(y[3] == 65504 && y[4] == -65504 && isnan(y[5]));
}

static void test_q8_blocks(void **state)
{
    (void)state;
    for (size_t n = 0; n < 200; n++) {
        float x[200], y[201];
        uint8_t bytes[256];
        size_t size = form_bytes(COMM_WIRE_Q8, n);
        assert_int_equal(size, n / 32 * 34 + (n % 32 ? 2 + n % 32 : 0));
        for (size_t i = 0; i < n; i++)
            x[i] = (float)(rng_uniform(n, i, 1) - 0.5) * ldexpf(1, (int)(i / 32 * 5) - 20);
        bytes[size] = 0x5a;
        y[n] = 42;
        form_encode(COMM_WIRE_Q8, x, n, bytes);
        form_decode(COMM_WIRE_Q8, bytes, n, y);
        assert_true(bytes[size] == 0x5a && y[n] == 42);
        for (size_t b = 0; b < n; b += 32) {
            float largest = 0;
            for (size_t i = b; i < n && i < b + 32; i++)
                largest = fmaxf(largest, fabsf(x[i]));
            /* Half a step, and what rounding the scale costs the largest. */
            float step = largest / 127 * 1.001f + 0x1p-24f;
            for (size_t i = b; i < n && i < b + 32; i++)
                assert_true(fabsf(x[i] - y[i]) <= step / 2 + 127 * 0x1p-25f);
        }
    }
    float odd[96] = {0}, back[96];
    uint8_t bytes[102];
    odd[5] = NAN;
    odd[40] = INFINITY;
    odd[70] = 3e38f;
    odd[71] = -1;
    form_encode(COMM_WIRE_Q8, odd, 96, bytes);
    form_decode(COMM_WIRE_Q8, bytes, 96, back);
    assert_true(isnan(back[0]) && isnan(back[31]) && isnan(back[32]));
    assert_true(back[70] == 65504.0f * 127 && back[71] == 0);
}

/* What a block's bytes must be, by definition. */
static void test_q8_bytes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        float x[32], largest = 0;
        uint8_t bytes[34];
        uint16_t half;
        for (unsigned i = 0; i < 32; i++) {
            x[i] = seed % 2 ? odd_float(seed, i) : (float)(rng_uniform(seed, i, 1) - 0.5);
            largest = fmaxf(largest, fabsf(x[i]));
        }
        form_encode(COMM_WIRE_Q8, x, 32, bytes);
        memcpy(&half, bytes, 2);
        assert_int_equal(half, nearest_half((double)(largest / 127.0f)));
        float scale = (float)half_value(half), inverse = scale > 0 ? 1 / scale : 0;
        for (int i = 0; i < 32; i++)
            assert_true(lrintf(fmaxf(-127, fminf(127, x[i] * inverse))) == (int8_t)bytes[2 + i]);
        /* A short block goes another way. */
        uint8_t shorter[33];
        x[31] = 0;
        form_encode(COMM_WIRE_Q8, x, 32, bytes);
        form_encode(COMM_WIRE_Q8, x, 31, shorter);
        assert_memory_equal(bytes, shorter, 33);
    }
}

/* Decoding bytes that nobody encoded is defined, adding is decoding and adding, and parts of a
 * vector give what the whole gives. */
static void test_pieces(void **state)
{
    (void)state;
    enum { N = 333 };
    for (int f = 0; f < N_FORMS; f++) {
        uint8_t bytes[N * 4];
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = (uint8_t)rng_u64(9, i, 2);
        float whole[N], pieces[N], sum[N];
        form_decode(forms[f], bytes, N, whole);
        for (size_t i = 0; i < N; i++)
            sum[i] = pieces[i] = odd_float(4, i);
        form_add(forms[f], bytes, N, sum);
        for (size_t i = 0; i < N; i++) {
            float expected = pieces[i] + whole[i];
            assert_true(memcmp(&sum[i], &expected, 4) == 0 || isnan(expected));
        }
        for (size_t at = 0; at < N; at += FORM_BLOCK) {
            size_t n = N - at < FORM_BLOCK ? N - at : FORM_BLOCK;
            form_decode(forms[f], bytes + form_bytes(forms[f], at), n, pieces + at);
        }
        assert_memory_equal(pieces, whole, sizeof(whole));
        for (size_t b = 0; b <= form_bytes(forms[f], N); b++) {
            size_t n = form_elements(forms[f], N, b);
            assert_true(form_bytes(forms[f], n) <= b && (n == N || n % FORM_BLOCK == 0));
            assert_true(n == N || form_bytes(forms[f], n + FORM_BLOCK) > b);
        }
    }
}

/* ---- in sums ---- */

struct sums {
    enum comm_wire form;
    uint64_t digest[WORLD_MAX];
};

static void fill(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = i < 1024 ? (float)(rng_uniform(seed, i, 3) - 0.5) : x[i - 1024] * 1.01f;
}

static void round_to(enum comm_wire form, float *x, size_t n, uint8_t *bytes)
{
    form_encode(form, x, n, bytes);
    form_decode(form, bytes, n, x);
}

static void check_sum(struct world *w, struct comm *c, struct comm_group g, uint64_t mask, size_t n,
                      bool halves)
{
    struct sums *run = w->arg;
    struct error e = {0};
    uint32_t rank = comm_rank(c), n_parts = 0;
    float *x = malloc((n + 1) * 4), *sum = calloc(n + 1, 4), *part = malloc((n + 1) * 4);
    uint8_t *bytes = malloc((n + 1) * 4);
    enum comm_wire form = g.n > 1 ? run->form : COMM_WIRE_F32;
    for (uint32_t i = 0; i < g.n; i++) {
        if ((mask >> i & 1) == 0)
            continue;
        fill(part, n, n + i);
        round_to(form, part, n, bytes);
        for (size_t k = 0; k < n; k++)
            sum[k] = n_parts == 0 ? part[k] : sum[k] + part[k];
        n_parts++;
    }
    fill(x, n, n + rank - g.first);
    if (halves) {
        CHECK_OK(comm_all_reduce_f32_start(c, g, mask, x, n, &e));
        CHECK_OK(comm_all_reduce_f32_finish(c, &e));
    } else {
        CHECK_OK(comm_all_reduce_f32(c, g, mask, x, n, &e));
    }
    bool equal = memcmp(x, sum, n * 4) == 0;
    if (!equal && form != COMM_WIRE_F32) { /* in slices: the sum is rounded too */
        round_to(form, sum, n, bytes);
        equal = n >= 1024 && n_parts > 1 && memcmp(x, sum, n * 4) == 0;
    }
    CHECK(equal);
    for (size_t i = 0; g.n == w->n && i < n * 4; i++)
        run->digest[rank] = (run->digest[rank] ^ ((uint8_t *)x)[i]) * UINT64_C(0x100000001b3);
    free(x);
    free(sum);
    free(part);
    free(bytes);
}

static void run_sums(struct world *w, struct comm *c, uint32_t rank)
{
    static const size_t counts[] = {0,     1,     31,    32,    33,     576,    2048,  8192,
                                    16383, 40001, 65536, 99999, 131072, 262147, 524291};
    struct comm_group all = {0, w->n};
    uint64_t everyone = (UINT64_C(1) << w->n) - 1;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        check_sum(w, c, all, everyone, counts[i], i % 2);
    for (uint64_t mask = 0; mask <= everyone; mask++) {
        check_sum(w, c, all, mask, 100, false);
        check_sum(w, c, all, mask, 50001, true);
    }
    if (w->n >= 4) {
        struct comm_group g = {rank / 2 * 2, 2};
        for (uint64_t mask = 0; rank < 4 && mask < 4; mask++)
            check_sum(w, c, g, mask, 3000 + rank / 2 * 300000, false);
    }
}

static void test_sums(void **state)
{
    (void)state;
    for (int f = 0; f < N_FORMS; f++)
        for (uint32_t n = 1; n <= 5; n += n == 3 ? 2 : 1) {
            struct comm_options o = {.wire = forms[f], .timeout_ms = 20000, .spin_us = 50};
            struct sums run = {.form = forms[f]};
            struct world w;
            world_open(&w, kind, n, &o);
            w.arg = &run;
            world_run(&w, run_sums);
            world_close(&w);
            for (uint32_t i = 1; i < n && kind != TRANSPORT_MPI; i++)
                assert_true(run.digest[i] == run.digest[0]);
        }
}

/* ---- point to point ---- */

static void run_values(struct world *w, struct comm *c, uint32_t rank)
{
    static const size_t counts[] = {0, 1, 33, 2048, 300001};
    struct error e = {0};
    enum comm_wire form = *(enum comm_wire *)w->arg;
    for (int i = 0; i < 5; i++) {
        size_t n = counts[i];
        float *x = malloc((n + 1) * 4), *y = malloc((n + 1) * 4);
        uint8_t *bytes = malloc((n + 1) * 4);
        for (size_t k = 0; k < n; k++)
            x[k] = odd_float(n, k & 4095);
        struct comm_stats before, after;
        comm_get_stats(c, &before);
        if (rank == 0) {
            CHECK_OK(comm_send_f32(c, 1, x, n, &e));
            comm_get_stats(c, &after);
            CHECK(after.bytes_sent - before.bytes_sent == 16 + form_bytes(form, n));
        } else {
            y[n] = 42;
            CHECK_OK(comm_recv_f32(c, 0, y, n, &e));
            round_to(form, x, n, bytes);
            CHECK(memcmp(x, y, n * 4) == 0 && y[n] == 42);
        }
        free(x);
        free(y);
        free(bytes);
    }
    CHECK(comm_send_f32(c, rank, NULL, 0, &e) == E_INVALID);
    CHECK(comm_recv_f32(c, 1 - rank, NULL, SIZE_MAX / 2, &e) == E_LIMIT);
}

static void test_values(void **state)
{
    (void)state;
    for (int f = 0; f < N_FORMS; f++) {
        struct comm_options o = {.wire = forms[f], .timeout_ms = 20000, .spin_us = 50};
        enum comm_wire form = forms[f];
        struct world w;
        world_open(&w, kind, 2, &o);
        w.arg = &form;
        world_run(&w, run_values);
        world_close(&w);
    }
    struct comm_options o = {.wire = (enum comm_wire)7};
    struct comm *comms[2];
    struct error e = {0};
    assert_int_equal(comm_local_new(2, &o, comms, &e), E_INVALID);
}

static int run_group(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_values),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest pure[] = {
        cmocka_unit_test(test_halves_exact),
        cmocka_unit_test(test_q8_blocks),
        cmocka_unit_test(test_q8_bytes),
        cmocka_unit_test(test_pieces),
    };
    int n_failed = cmocka_run_group_tests_name("forms", pure, NULL, NULL);
    return n_failed + world_main(argc, argv, &kind, run_group);
}
