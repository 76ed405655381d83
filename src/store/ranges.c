#include "store/ranges.h"

#include <string.h>

bool ranges_add(struct ranges *r, uint64_t begin, uint64_t end)
{
    uint32_t first = 0, last;
    if (begin >= end)
        return true;
    while (first < r->n && r->item[first].end < begin)
        first++;
    for (last = first; last < r->n && r->item[last].begin <= end; last++) {
        begin = r->item[last].begin < begin ? r->item[last].begin : begin;
        end = r->item[last].end > end ? r->item[last].end : end;
    }
    if (first == last && r->n == RANGES_MAX)
        return false;
    memmove(&r->item[first + 1], &r->item[last], (r->n - last) * sizeof(r->item[0]));
    r->n = r->n - (last - first) + 1;
    r->item[first] = (struct range){begin, end};
    return true;
}

void ranges_remove(struct ranges *r, uint64_t begin, uint64_t end)
{
    struct ranges old = *r;
    r->n = 0;
    for (uint32_t i = 0; i < old.n; i++) {
        struct range o = old.item[i];
        bool is_apart = o.end <= begin || o.begin >= end;
        ranges_add(r, o.begin, is_apart || o.end < begin ? o.end : begin);
        if (!is_apart)
            ranges_add(r, end > o.begin ? end : o.begin, o.end);
    }
}

uint64_t ranges_bytes(const struct ranges *r)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < r->n; i++)
        sum += r->item[i].end - r->item[i].begin;
    return sum;
}

uint64_t ranges_prefix(const struct ranges *r)
{
    return r->n > 0 && r->item[0].begin == 0 ? r->item[0].end : 0;
}

bool ranges_first_hole(const struct ranges *r, uint64_t total, struct range *ret_hole)
{
    uint64_t begin = ranges_prefix(r);
    uint32_t next = begin > 0 ? 1 : 0;
    uint64_t end = next < r->n ? r->item[next].begin : total;
    if (end > total)
        end = total;
    if (begin >= end)
        return false;
    *ret_hole = (struct range){begin, end};
    return true;
}
