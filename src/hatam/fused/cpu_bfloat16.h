/* bfloat16 as the upper half of a float32, and the seeded random numbers of stochastic rounding: hatam/rounding.py. */
#ifndef HATAM_CPU_BFLOAT16_H
#define HATAM_CPU_BFLOAT16_H

#include <stdint.h>
#include <string.h>

/* How one tensor is rounded: its bits are raised by a random number, or by half a unit for the nearest, and cut. */
typedef struct {
    uint32_t random, nearest; /* masks, one of which is 0 */
} Rounding;

static const Rounding TO_NEAREST = {0, 0xffffffffU}, AT_RANDOM = {0xffffU, 0};

/* A permutation of the 32-bit numbers that scatters them: "lowbias32", found by C. Wellons' hash prospector. */
static inline uint32_t scatter(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

/* Element i of tensor `number` draws scatter(i ^ key) at this step: half of it for m, half for e, and the same of a
 * second key for w and v. */
static inline uint32_t key_of(uint32_t seed, uint32_t number, uint32_t step) {
    return scatter(scatter(scatter(seed) + number) + step);
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

/* The nearest number that bfloat16 has, or one of its two neighbours at random; infinity and NaN stay what they are. */
static inline float rounded(float x, uint32_t random, Rounding rounding) {
    uint32_t bits = bits_of(x);
    uint32_t raise = (random & rounding.random) + ((0x7fffU + (bits >> 16 & 1U)) & rounding.nearest);
    uint32_t special = (bits & 0x7fffffU) != 0 ? 0x400000U : 0; /* a NaN must not become infinite, nor infinity a NaN */
    return float_of(((bits & 0x7f800000U) == 0x7f800000U ? bits | special : bits + raise) & 0xffff0000U);
}

#endif
