/* bfloat16 as the upper half of a float32, and seeded stochastic rounding, with the same bits as hatam/rounding.py. */
#ifndef HATAM_CPU_BFLOAT16_H
#define HATAM_CPU_BFLOAT16_H

#include <stdint.h>
#include <string.h>

/* A hash that permutes the 32-bit numbers: "lowbias32", found by C. Wellons' hash prospector. */
static inline uint32_t scatter(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

/* The key of one parameter at one step. Element i draws scatter(i ^ key) for m, which uses the lower half, and
 * scatter(i ^ ~key): the lower half for z, the upper half for v and w. */
static inline uint32_t key_of(uint32_t seed, uint32_t param_index, uint32_t step) {
    return scatter(scatter(scatter(seed) + param_index) + step);
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float widened(uint16_t x) { return float_of((uint32_t)x << 16); }

static inline uint16_t narrowed(float x) { return (uint16_t)(bits_of(x) >> 16); }

/* x rounded to bfloat16, to nearest or stochastically. The probability of rounding up in magnitude is the fraction that
 * truncation would discard. Infinity and NaN are kept.
 */
static inline float rounded(float x, uint32_t random, const int at_random) {
    uint32_t bits = bits_of(x), raise = at_random ? random & 0xffffU : 0x7fffU + (bits >> 16 & 1U);
    return x - x == 0 ? float_of((bits + raise) & 0xffff0000U) : x + x; /* x + x: a quiet NaN survives truncation */
}

/* The middle of the 2^16 float32 numbers that are rounded to x with these random bits. There are two in the middle, and
 * the lowest random bit chooses one of them. */
static inline float center(float x, uint32_t random) {
    return x - x == 0 && x != 0 ? float_of(bits_of(x) - (random & 0xffffU) + 0x7fffU + (random & 1U)) : x;
}

#endif
