#include "base/utf8.h"

/* Length promised by the first byte, and the range its second byte must be in (RFC 3629, section
 * 4). */
static size_t lead_length(unsigned char lead, unsigned char *ret_low, unsigned char *ret_high)
{
    *ret_low = 0x80;
    *ret_high = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        return 2;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (lead == 0xE0)
            *ret_low = 0xA0;
        if (lead == 0xED)
            *ret_high = 0x9F;
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (lead == 0xF0)
            *ret_low = 0x90;
        if (lead == 0xF4)
            *ret_high = 0x8F;
        return 4;
    }
    return 0;
}

/* Number of leading bytes, at most `need`, that may stand in one sequence. */
static size_t matching_bytes(const char *text, size_t len, size_t need, unsigned char low,
                             unsigned char high)
{
    size_t n = 1;
    while (n < need && n < len) {
        unsigned char c = (unsigned char)text[n];
        if (c < (n == 1 ? low : 0x80) || c > (n == 1 ? high : 0xBF))
            break;
        n++;
    }
    return n;
}

size_t utf8_sequence_length(const char *text, size_t len)
{
    unsigned char low, high;
    if (len == 0)
        return 0;
    size_t need = lead_length((unsigned char)text[0], &low, &high);
    return need > 0 && matching_bytes(text, len, need, low, high) == need ? need : 0;
}

bool utf8_is_incomplete(const char *text, size_t len)
{
    unsigned char low, high;
    if (len == 0)
        return false;
    size_t need = lead_length((unsigned char)text[0], &low, &high);
    return need > len && matching_bytes(text, len, need, low, high) == len;
}

uint32_t utf8_decode(const char *text, size_t sequence_length)
{
    static const unsigned char lead_mask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t v = (unsigned char)text[0] & lead_mask[sequence_length];
    for (size_t i = 1; i < sequence_length; i++)
        v = v << 6 | ((unsigned char)text[i] & 0x3F);
    return v;
}

size_t utf8_encode(uint32_t code_point, char ret_text[4])
{
    if (code_point < 0x80) {
        ret_text[0] = (char)code_point;
        return 1;
    }
    size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n - 1; i > 0; i--) {
        ret_text[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    ret_text[0] = (char)(lead[n] | code_point);
    return n;
}
