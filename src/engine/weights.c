#include "engine/weights.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/memory.h"
#include "engine/weights_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* One tensor of the shard on its way to its memory. */
struct load_item {
    struct weights_piece *piece; /* where it will lie */
    struct ggml_tensor *tensor;
    bool is_kept;
};

struct loader {
    struct weights *w;
    const struct model *model;
    const struct shard *shard;
    bool repack;
    ggml_backend_dev_t device;
    ggml_backend_buffer_type_t repack_type; /* of all repacked tensors; NULL: none yet */
    struct load_item *items;                /* one for each piece */
    struct weights_chunk *map;              /* of kept weights */
    int fd;
};

static bool is_matrix_role(enum role role)
{
    switch (role) {
    case ROLE_OUTPUT:
    case ROLE_ATTN_Q:
    case ROLE_ATTN_K:
    case ROLE_ATTN_V:
    case ROLE_ATTN_OUT:
    case ROLE_FFN_GATE:
    case ROLE_FFN_UP:
    case ROLE_FFN_DOWN:
        return true;
    default:
        return false;
    }
}

/* ggml's list of extra buffer types, asked for once: ranks may be threads that load at the same
 * time. */
static ggml_backend_buffer_type_t *repack_types;

static void find_repack_types(void)
{
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    ggml_backend_dev_get_extra_bufts_t get_types =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    repack_types = get_types != NULL ? get_types(device) : NULL;
}

/* The first extra CPU buffer type that can multiply by this weight, as ggml's own loaders choose
 * it; NULL when the file's layout is the best. The question needs a tensor that claims to live in
 * such a buffer. */
static ggml_backend_buffer_type_t find_repack_type(const struct loader *l,
                                                   struct ggml_tensor *weight)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_repack_types);
    ggml_backend_buffer_type_t found = NULL;
    for (ggml_backend_buffer_type_t *type = repack_types; type != NULL && *type != NULL && !found;
         type++) {
        struct ggml_init_params params = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
        struct ggml_context *ctx = ggml_init(params);
        if (ctx == NULL)
            return NULL;
        struct ggml_tensor *input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weight->ne[0], 512);
        struct ggml_tensor *product = ggml_mul_mat(ctx, weight, input);
        weight->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
        if (weight->buffer != NULL && ggml_backend_dev_supports_op(l->device, product))
            found = *type;
        ggml_backend_buffer_free(weight->buffer);
        weight->buffer = NULL;
        ggml_free(ctx);
    }
    return found;
}

static struct ggml_tensor *new_tensor(const struct loader *l, const struct tensor_slice *s)
{
    enum ggml_type type = (enum ggml_type)s->tensor->type;
    return s->tensor->n_dims == 1
               ? ggml_new_tensor_1d(l->w->context, type, (int64_t)s->n_cols)
               : ggml_new_tensor_2d(l->w->context, type, (int64_t)s->n_cols, (int64_t)s->n_rows);
}

static enum weights_place choose_place(struct loader *l, enum role role,
                                       const struct tensor_slice *s, struct ggml_tensor *t)
{
    if (l->repack && is_matrix_role(role)) {
        ggml_backend_buffer_type_t type = find_repack_type(l, t);
        if (type != NULL && (l->repack_type == NULL || l->repack_type == type)) {
            l->repack_type = type;
            return PLACE_REPACKED;
        }
    }
    /* Vectors are copied: they are small, and mapping one brings its neighbours in the file, too.
     */
    return s->tensor->n_dims > 1 && s->row_bytes == s->row_stride_bytes ? PLACE_MAPPED
                                                                        : PLACE_PLAIN;
}

static int add_item(struct loader *l, enum role role, uint32_t layer,
                    struct ggml_tensor **ret_tensor, struct error *err)
{
    struct tensor_slice s;
    if (!shard_slice(l->shard, l->model, role, layer, &s))
        return 0;
    struct ggml_tensor *t = new_tensor(l, &s);
    ggml_format_name(t, "%s.%u", role_name(role), layer);
    unsigned long long bytes = s.row_bytes * s.n_rows;
    if (ggml_nbytes(t) != bytes)
        return error_set(err, E_INTERNAL, "tensor '%s': ggml counts %zu bytes, the file %llu",
                         s.tensor->name, ggml_nbytes(t), bytes);
    uint32_t index = l->w->n_pieces++;
    l->w->pieces[index] = (struct weights_piece){
        .role = role, .layer = layer, .place = choose_place(l, role, &s, t), .slice = s};
    l->items[index] = (struct load_item){.piece = &l->w->pieces[index], .tensor = t};
    *ret_tensor = t;
    return 0;
}

static int place_tensor(struct load_item *item, struct weights_chunk *chunk, char *address,
                        size_t bytes, struct error *err)
{
    if (ggml_backend_tensor_alloc(chunk->buffer, item->tensor, address) != GGML_STATUS_SUCCESS)
        return error_set(err, E_INTERNAL, "cannot place tensor '%s'", item->tensor->name);
    item->piece->chunk = chunk_ref(chunk);
    item->piece->address = address;
    item->piece->bytes = bytes;
    return 0;
}

/* ---- what is there already ---- */

static bool is_same_slice(const struct weights_piece *a, const struct weights_piece *b)
{
    const struct tensor_slice *x = &a->slice, *y = &b->slice;
    return a->role == b->role && a->layer == b->layer && a->place == b->place &&
           x->file_offset == y->file_offset && x->n_rows == y->n_rows && x->n_cols == y->n_cols &&
           x->row_bytes == y->row_bytes && x->row_stride_bytes == y->row_stride_bytes;
}

/* Both lists are in the order of roles and layers, so the search goes on where the last one ended.
 */
static struct weights_piece *find_kept(struct weights *kept, const struct weights_piece *wanted,
                                       uint32_t *next)
{
    for (uint32_t n = 0; n < kept->n_pieces; n++) {
        uint32_t i = (*next + n) % kept->n_pieces;
        if (!is_same_slice(&kept->pieces[i], wanted))
            continue;
        *next = (i + 1) % kept->n_pieces;
        return &kept->pieces[i];
    }
    return NULL;
}

static bool is_of_this_file(const struct weights *kept, const struct weights *w)
{
    return memcmp(kept->model_hash, w->model_hash, sizeof(w->model_hash)) == 0 &&
           kept->file.device == w->file.device && kept->file.inode == w->file.inode &&
           kept->file.bytes == w->file.bytes && kept->file.changed_ns == w->file.changed_ns;
}

/* Takes over what fits, and gives back the memory of all else before anything new takes any. */
static int take_kept(struct loader *l, struct weights *kept, struct error *err)
{
    struct weights *w = l->w;
    struct weights_piece **used = calloc((size_t)w->n_pieces + 1, sizeof(struct weights_piece *));
    uint32_t next = 0, n_used = 0;
    int rc = used != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < w->n_pieces && rc == 0 && is_of_this_file(kept, w); i++) {
        struct load_item *item = &l->items[i];
        struct weights_piece *p = find_kept(kept, item->piece, &next);
        if (p == NULL || (p->place == PLACE_REPACKED &&
                          ggml_backend_buffer_get_type(p->chunk->buffer) != l->repack_type))
            continue;
        rc = place_tensor(item, p->chunk, p->address, p->bytes, err);
        if (rc != 0)
            break;
        item->is_kept = true;
        w->bytes_kept += p->bytes;
        used[n_used++] = item->piece;
        if (p->place == PLACE_MAPPED && l->map == NULL)
            l->map = chunk_ref(p->chunk);
    }
    weights_free(kept);
    if (rc == 0)
        chunk_discard_rest(used, n_used);
    free(used);
    return rc;
}

/* ---- what is new ---- */

/* Places all new tensors of one kind, one after another, in a chunk of this type. */
static int place_in_buffer(struct loader *l, enum weights_place place,
                           ggml_backend_buffer_type_t type, struct error *err)
{
    size_t align = ggml_backend_buft_get_alignment(type), total = 0;
    for (uint32_t i = 0; i < l->w->n_pieces; i++)
        if (l->items[i].piece->place == place && !l->items[i].is_kept)
            total += GGML_PAD(ggml_backend_buft_get_alloc_size(type, l->items[i].tensor), align);
    if (total == 0)
        return 0;
    struct weights_chunk *chunk;
    int rc = chunk_new(type, total, &chunk, err);
    if (rc != 0)
        return rc;
    char *address = chunk->base;
    for (uint32_t i = 0; i < l->w->n_pieces && rc == 0; i++) {
        struct load_item *item = &l->items[i];
        if (item->piece->place != place || item->is_kept)
            continue;
        size_t bytes = GGML_PAD(ggml_backend_buft_get_alloc_size(type, item->tensor), align);
        rc = place_tensor(item, chunk, address, bytes, err);
        address += bytes;
    }
    chunk_unref(chunk); /* its pieces hold it now */
    return rc;
}

static int map_file(struct loader *l, struct error *err)
{
    struct weights *w = l->w;
    int rc = 0;
    for (uint32_t i = 0; i < w->n_pieces && rc == 0; i++) {
        struct load_item *item = &l->items[i];
        if (item->piece->place != PLACE_MAPPED || item->is_kept)
            continue;
        if (l->map == NULL)
            rc = chunk_map(l->fd, gguf_file_size(l->model->file), gguf_file_path(l->model->file),
                           &l->map, err);
        if (rc != 0)
            return rc;
        char *address = l->map->base + item->piece->slice.file_offset;
        rc = place_tensor(item, l->map, address, ggml_nbytes(item->tensor), err);
        /* The embedding table is only looked into, row by row: its pages come when they are used.
         */
        if (rc == 0 && item->piece->role != ROLE_TOKEN_EMBD)
            memory_prefault(address, item->piece->bytes);
    }
    return rc;
}

static int read_bytes(const struct loader *l, uint64_t offset, void *data, size_t n,
                      struct error *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(l->fd, (char *)data + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return error_set(err, E_IO, "cannot read %zu bytes at %llu of '%s': %s", n,
                             (unsigned long long)offset, gguf_file_path(l->model->file),
                             got < 0 ? strerror(errno) : "the file has become shorter");
        done += (size_t)got;
    }
    return 0;
}

/* Brings one slice, row by row where it is not contiguous, into dst. Strided rows are read in
 * chunks of whole rows, so that a narrow slice of many rows does not cost one system call a row. */
static int read_slice(const struct loader *l, const struct tensor_slice *s, char *dst,
                      struct error *err)
{
    if (s->row_bytes == s->row_stride_bytes || s->n_rows == 1)
        return read_bytes(l, s->file_offset, dst, s->row_bytes * s->n_rows, err);

    enum { CHUNK_BYTES = 4 << 20 };
    uint64_t rows_per_chunk =
        CHUNK_BYTES / s->row_stride_bytes > 0 ? CHUNK_BYTES / s->row_stride_bytes : 1;
    char *chunk = malloc(rows_per_chunk * s->row_stride_bytes);
    if (chunk == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = 0;
    for (uint64_t row = 0; row < s->n_rows && rc == 0; row += rows_per_chunk) {
        uint64_t n = s->n_rows - row < rows_per_chunk ? s->n_rows - row : rows_per_chunk;
        rc = read_bytes(l, s->file_offset + row * s->row_stride_bytes, chunk,
                        (n - 1) * s->row_stride_bytes + s->row_bytes, err);
        for (uint64_t i = 0; i < n && rc == 0; i++)
            memcpy(dst + (row + i) * s->row_bytes, chunk + i * s->row_stride_bytes, s->row_bytes);
    }
    free(chunk);
    return rc;
}

static int compare_size(const void *a, const void *b)
{
    const struct load_item *x = a, *y = b;
    size_t n = ggml_nbytes(x->tensor), m = ggml_nbytes(y->tensor);
    return n < m ? 1 : n > m ? -1 : 0;
}

/* A repacked tensor is set as a whole, from the file's pages where they hold just this slice: they
 * can be had back at any time, so that they do not count while memory is short. */
static int repack_mapped(const struct loader *l, const struct load_item *item, struct error *err)
{
    const struct tensor_slice *s = &item->piece->slice;
    size_t page = memory_page_bytes(), before = s->file_offset % page;
    size_t bytes = ggml_nbytes(item->tensor);
    char *map =
        mmap(NULL, before + bytes, PROT_READ, MAP_SHARED, l->fd, (off_t)(s->file_offset - before));
    if (map == MAP_FAILED)
        return error_set(err, E_IO, "cannot map '%s': %s", gguf_file_path(l->model->file),
                         strerror(errno));
    memory_prefault(map, before + bytes);
    ggml_backend_tensor_set(item->tensor, map + before, 0, bytes);
    munmap(map, before + bytes);
    return 0;
}

/* Else from a copy that exists beside it for a moment. The copy is mapped, since malloc keeps what
 * is freed. */
static int repack_copied(const struct loader *l, const struct load_item *item, struct error *err)
{
    size_t bytes = ggml_nbytes(item->tensor);
    char *copy = memory_reserve(bytes);
    if (copy == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = read_slice(l, &item->piece->slice, copy, err);
    if (rc == 0)
        ggml_backend_tensor_set(item->tensor, copy, 0, bytes);
    memory_unreserve(copy, bytes);
    return rc;
}

static int fill_repacked(const struct loader *l, const struct load_item *item, struct error *err)
{
    const struct tensor_slice *s = &item->piece->slice;
    return s->row_bytes == s->row_stride_bytes ? repack_mapped(l, item, err)
                                               : repack_copied(l, item, err);
}

/* The largest go first, while little else is resident, so that what stands beside them does not
 * raise the peak. Sorts the items. */
static int fill(struct loader *l, struct error *err)
{
    qsort(l->items, l->w->n_pieces, sizeof(*l->items), compare_size);
    int rc = 0;
    for (uint32_t i = 0; i < l->w->n_pieces && rc == 0; i++) {
        const struct load_item *item = &l->items[i];
        if (item->is_kept)
            continue;
        if (item->piece->place == PLACE_PLAIN)
            rc = read_slice(l, &item->piece->slice, item->tensor->data, err);
        else if (item->piece->place == PLACE_REPACKED)
            rc = fill_repacked(l, item, err);
    }
    return rc;
}

/* ---- all of it ---- */

static int prepare(struct loader *l, struct error *err)
{
    struct weights *w = l->w;
    const struct shard *s = l->shard;
    uint32_t n_layers = s->layers.end - s->layers.begin;
    size_t n_max = ROLE_FIRST_OF_LAYER + (size_t)n_layers * ROLE_COUNT;
    struct ggml_init_params params = {.mem_size = (n_max + 1) * ggml_tensor_overhead(),
                                      .no_alloc = true};
    w->context = ggml_init(params);
    w->layer = calloc(n_layers + 1, sizeof(*w->layer));
    w->pieces = calloc(n_max, sizeof(*w->pieces));
    l->items = calloc(n_max, sizeof(*l->items));
    l->device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    if (w->context == NULL || w->layer == NULL || w->pieces == NULL || l->items == NULL)
        return error_set(err, E_NOMEM, "out of memory");

    int rc = 0;
    for (enum role role = 0; role < ROLE_FIRST_OF_LAYER && rc == 0; role++)
        rc = add_item(l, role, 0, &w->global[role], err);
    for (uint32_t i = 0; i < n_layers; i++)
        for (enum role role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT && rc == 0; role++)
            rc = add_item(l, role, s->layers.begin + i, &w->layer[i][role], err);
    return rc;
}

static int open_file(struct loader *l, struct error *err)
{
    const char *path = gguf_file_path(l->model->file);
    struct stat st;
    l->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (l->fd < 0 || fstat(l->fd, &st) != 0)
        return error_set(err, E_IO, "cannot open '%s': %s", path, strerror(errno));
    memcpy(l->w->model_hash, l->model->hash, sizeof(l->w->model_hash));
    l->w->file.device = st.st_dev;
    l->w->file.inode = st.st_ino;
    l->w->file.bytes = st.st_size;
    l->w->file.changed_ns = st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
    return 0;
}

static void count_bytes(struct weights *w)
{
    for (uint32_t i = 0; i < w->n_pieces; i++) {
        const struct weights_piece *p = &w->pieces[i];
        uint64_t *sum = p->place == PLACE_MAPPED     ? &w->bytes_mapped
                        : p->place == PLACE_REPACKED ? &w->bytes_repacked
                                                     : &w->bytes_plain;
        *sum += p->bytes;
    }
}

/* Takes kept. */
static int load(struct loader *l, struct weights *kept, struct error *err)
{
    uint64_t start_ns = clock_now_ns();
    bool has_kept = kept != NULL;
    int rc = prepare(l, err);
    if (rc == 0)
        rc = open_file(l, err);
    if (rc != 0)
        weights_free(kept);
    else if (has_kept)
        rc = take_kept(l, kept, err);
    if (rc == 0 && l->repack_type != NULL)
        rc = place_in_buffer(l, PLACE_REPACKED, l->repack_type, err);
    if (rc == 0)
        rc = place_in_buffer(l, PLACE_PLAIN, ggml_backend_cpu_buffer_type(), err);
    if (rc == 0)
        rc = fill(l, err);
    if (rc == 0)
        rc = map_file(l, err);
    if (rc != 0)
        return rc;
    count_bytes(l->w);
    if (has_kept)
        log_info("engine", "weights: %.1f of %.1f MiB were there, the rest loaded in %.2f s",
                 (double)l->w->bytes_kept / (1 << 20),
                 (double)(l->w->bytes_mapped + l->w->bytes_repacked + l->w->bytes_plain) /
                     (1 << 20),
                 (double)(clock_now_ns() - start_ns) / 1e9);
    return 0;
}

int weights_load(const struct model *m, const struct shard *s, bool repack, struct weights *kept,
                 struct weights **ret_weights, struct error *err)
{
    struct weights *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        weights_free(kept);
        return error_set(err, E_NOMEM, "out of memory");
    }
    struct loader l = {.w = w, .model = m, .shard = s, .repack = repack, .fd = -1};
    int rc = load(&l, kept, err);
    if (l.fd >= 0)
        close(l.fd);
    chunk_unref(l.map);
    free(l.items);
    if (rc != 0) {
        weights_free(w);
        return rc;
    }
    *ret_weights = w;
    return 0;
}

void weights_free(struct weights *w)
{
    if (w == NULL)
        return;
    for (uint32_t i = 0; i < w->n_pieces; i++)
        chunk_unref(w->pieces[i].chunk);
    if (w->context != NULL)
        ggml_free(w->context);
    free(w->pieces);
    free(w->layer);
    free(w);
}

uint64_t weights_bytes_held(const struct weights *w)
{
    return w != NULL ? w->bytes_repacked + w->bytes_plain : 0;
}
