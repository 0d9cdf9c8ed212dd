/* bfloat16 as the upper half of a float32, and the seeded random numbers of stochastic rounding: hatam/rounding.py. */
#ifndef HATAM_CPU_BFLOAT16_H
#define HATAM_CPU_BFLOAT16_H

#include <stdint.h>
#include <string.h>

/* A permutation of the 32-bit numbers that scatters them: "lowbias32", found by C. Wellons' hash prospector. */
static inline uint32_t scatter(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

/* Element i of tensor `param_index` draws scatter(i ^ key) at this step: half of it for m, and the two halves of a second key's
 * for z and v, or for z and w. */
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

/* The nearest param_index that bfloat16 has, or at random one of its two neighbours: up with the probability of the part that
 * is cut off. Infinity and NaN stay what they are.
 */
static inline float rounded(float x, uint32_t random, const int at_random) {
    uint32_t bits = bits_of(x), raise = at_random ? random & 0xffffU : 0x7fffU + (bits >> 16 & 1U);
    return x - x == 0 ? float_of((bits + raise) & 0xffff0000U) : x + x; /* x + x: a quiet NaN, which outlives the cut */
}

/* The middle of the numbers that are rounded to x with these random bits, which lie as far apart as two neighbours: one
 * of the two that are there, each in half of all cases. */
static inline float middle(float x, uint32_t random) {
    return x - x == 0 && x != 0 ? float_of(bits_of(x) - (random & 0xffffU) + 0x7fffU + (random & 1U)) : x;
}

#endif
