#include "engine/weights.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/compute.h"
#include "engine/memory.h"
#include "engine/multiply.h"
#include "engine/weights_fill.h"
#include "engine/weights_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
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
    struct weights_target target;
    ggml_backend_dev_t cpu;
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

/* Whether a device multiplies by this weight if that lies in such a buffer. */
static bool can_multiply(ggml_backend_dev_t device, ggml_backend_buffer_type_t type,
                         struct ggml_tensor *weight)
{
    struct ggml_init_params params = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    if (ctx == NULL)
        return false;
    struct ggml_tensor *input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weight->ne[0], 512);
    bool can = compute_can(device, type, ggml_mul_mat(ctx, weight, input), weight);
    ggml_free(ctx);
    return can;
}

/* The first extra CPU buffer type that can multiply by this weight, as ggml's own loaders choose
 * it; NULL when the file's layout is the best. */
static ggml_backend_buffer_type_t find_repack_type(const struct loader *l,
                                                   struct ggml_tensor *weight)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_repack_types);
    for (ggml_backend_buffer_type_t *type = repack_types; type != NULL && *type != NULL; type++)
        if (can_multiply(l->cpu, *type, weight))
            return *type;
    return NULL;
}

static struct ggml_tensor *new_tensor(const struct loader *l, const struct tensor_slice *s)
{
    enum ggml_type type = (enum ggml_type)s->tensor->type;
    return s->tensor->n_dims == 1
               ? ggml_new_tensor_1d(l->w->context, type, (int64_t)s->n_cols)
               : ggml_new_tensor_2d(l->w->context, type, (int64_t)s->n_cols, (int64_t)s->n_rows);
}

static bool goes_to_device(struct loader *l, enum role role, const struct tensor_slice *s,
                           struct ggml_tensor *t)
{
    ggml_backend_dev_t device = l->target.device;
    if (device == NULL || role == ROLE_TOKEN_EMBD)
        return false;
    if (s->tensor->n_dims == 1 || can_multiply(device, ggml_backend_dev_buffer_type(device), t))
        return true;
    l->w->n_matrices_beside++;
    return false;
}

static enum weights_place choose_place(struct loader *l, enum role role,
                                       const struct tensor_slice *s, struct ggml_tensor *t)
{
    if (goes_to_device(l, role, s, t))
        return PLACE_DEVICE;
    if (l->target.repack && is_matrix_role(role) && multiply_can(t->type, t->ne[0]))
        return PLACE_PACKED;
    if (l->target.repack && is_matrix_role(role)) {
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
    if (l->w->pieces[index].place == PLACE_PACKED)
        multiply_mark(t);
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

/* Whether kept memory is of the kind that new memory would be. */
static bool is_in_type(const struct weights_piece *p, const struct loader *l)
{
    ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(p->chunk->buffer);
    if (p->place == PLACE_DEVICE)
        return type == ggml_backend_dev_buffer_type(l->target.device);
    return p->place != PLACE_REPACKED || type == l->repack_type;
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
        if (p == NULL || !is_in_type(p, l))
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

/* Which of a device's chunks a tensor goes to: a chunk gives its memory back only as a whole, so
 * that each layer has one for itself; and one for all vectors, which shards of other widths keep.
 */
static uint32_t device_group(const struct weights_piece *p)
{
    return p->slice.tensor->n_dims == 1 ? 0 : p->role < ROLE_FIRST_OF_LAYER ? 1 : 2 + p->layer;
}

static bool is_to_place(const struct load_item *item, enum weights_place place, uint32_t group)
{
    return item->piece->place == place && !item->is_kept &&
           (place != PLACE_DEVICE || device_group(item->piece) == group);
}

static size_t count_bytes_of(const struct load_item *item, ggml_backend_buffer_type_t type)
{
    const struct ggml_tensor *t = item->tensor;
    size_t bytes = item->piece->place == PLACE_PACKED ? multiply_bytes(t->type, t->ne[0], t->ne[1])
                                                      : ggml_backend_buft_get_alloc_size(type, t);
    return GGML_PAD(bytes, ggml_backend_buft_get_alignment(type));
}

/* Places new tensors of one kind (and group, on a device), one after another, in a chunk of this
 * type. */
static int place_in_buffer(struct loader *l, enum weights_place place, uint32_t group,
                           ggml_backend_buffer_type_t type, struct error *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < l->w->n_pieces; i++)
        if (is_to_place(&l->items[i], place, group))
            total += count_bytes_of(&l->items[i], type);
    if (total == 0)
        return 0;
    struct weights_chunk *chunk;
    int rc = chunk_new(type, total, &chunk, err);
    if (rc != 0)
        return rc;
    char *address = chunk->base;
    for (uint32_t i = 0; i < l->w->n_pieces && rc == 0; i++) {
        struct load_item *item = &l->items[i];
        if (!is_to_place(item, place, group))
            continue;
        size_t bytes = count_bytes_of(item, type);
        rc = place_tensor(item, chunk, address, bytes, err);
        address += bytes;
    }
    chunk_unref(chunk); /* its pieces hold it now */
    return rc;
}

static int place_on_device(struct loader *l, struct error *err)
{
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(l->target.device);
    int rc = 0;
    for (uint32_t group = 0; group < 2 && rc == 0; group++)
        rc = place_in_buffer(l, PLACE_DEVICE, group, type, err);
    for (uint32_t i = l->shard->layers.begin; i < l->shard->layers.end && rc == 0; i++)
        rc = place_in_buffer(l, PLACE_DEVICE, 2 + i, type, err);
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

static int compare_size(const void *a, const void *b)
{
    const struct load_item *x = a, *y = b;
    size_t n = ggml_nbytes(x->tensor), m = ggml_nbytes(y->tensor);
    return n < m ? 1 : n > m ? -1 : 0;
}

/* The largest go first, while little else is resident, so that what stands beside them does not
 * raise the peak. Sorts the items. */
static int fill(struct loader *l, struct error *err)
{
    const struct weights_file file = {l->fd, gguf_file_path(l->model->file)};
    int rc = 0;
    qsort(l->items, l->w->n_pieces, sizeof(*l->items), compare_size);
    for (uint32_t i = 0; i < l->w->n_pieces && rc == 0; i++) {
        const struct load_item *item = &l->items[i];
        if (item->is_kept)
            continue;
        if (item->piece->place == PLACE_PLAIN)
            rc = weights_read(&file, &item->piece->slice, item->tensor->data, err);
        else if (item->piece->place == PLACE_PACKED)
            rc = weights_pack(&file, &item->piece->slice, item->tensor, err);
        else if (item->piece->place != PLACE_MAPPED)
            rc = weights_set(&file, &item->piece->slice, item->tensor, err);
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
    l->cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
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
                        : p->place == PLACE_PACKED   ? &w->bytes_packed
                        : p->place == PLACE_REPACKED ? &w->bytes_repacked
                        : p->place == PLACE_DEVICE   ? &w->bytes_device
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
    if (rc == 0 && l->target.device != NULL)
        rc = place_on_device(l, err);
    if (rc == 0 && l->repack_type != NULL)
        rc = place_in_buffer(l, PLACE_REPACKED, 0, l->repack_type, err);
    if (rc == 0)
        rc = place_in_buffer(l, PLACE_PACKED, 0, ggml_backend_cpu_buffer_type(), err);
    if (rc == 0)
        rc = place_in_buffer(l, PLACE_PLAIN, 0, ggml_backend_cpu_buffer_type(), err);
    if (rc == 0)
        rc = fill(l, err);
    if (rc == 0)
        rc = map_file(l, err);
    if (rc != 0)
        return rc;
    count_bytes(l->w);
    if (has_kept)
        log_info("engine", "weights: %.1f of %.1f MiB were there, the rest loaded in %.2f s",
                 (double)l->w->bytes_kept / (1 << 20), (double)weights_bytes(l->w) / (1 << 20),
                 (double)(clock_now_ns() - start_ns) / 1e9);
    return 0;
}

int weights_load(const struct model *m, const struct shard *s, const struct weights_target *target,
                 struct weights *kept, struct weights **ret_weights, struct error *err)
{
    struct weights *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        weights_free(kept);
        return error_set(err, E_NOMEM, "out of memory");
    }
    struct loader l = {.w = w, .model = m, .shard = s, .target = *target, .fd = -1};
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

uint64_t weights_bytes(const struct weights *w)
{
    return w->bytes_mapped + w->bytes_packed + w->bytes_repacked + w->bytes_plain + w->bytes_device;
}

uint64_t weights_bytes_held(const struct weights *w)
{
    return w != NULL ? weights_bytes(w) - w->bytes_mapped : 0;
}
