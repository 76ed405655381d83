#include "base/words.h"

#include <string.h>

size_t word_distance(const char *a, const char *b)
{
    size_t row[WORD_BYTES_MAX + 1], n_a = strlen(a), n_b = strlen(b);
    if (n_a > WORD_BYTES_MAX || n_b > WORD_BYTES_MAX)
        return WORD_BYTES_MAX;
    for (size_t j = 0; j <= n_b; j++)
        row[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
        }
    }
    return row[n_b];
}
