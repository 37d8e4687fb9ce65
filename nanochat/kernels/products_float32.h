// Terms as float32. Part of products.c.

#define WORDS(depth) (depth) // words that pack `depth` terms of a row
#define LINES 16             // terms copied at once from rows that are far apart

// A sum over packed a (depth, TALL) and b (depth, WIDE). Not inlined, so that the caller's variables are not kept in the registers that
// the loop needs.
static __attribute__((noinline)) void tile(size depth, const float *a, const float *b, const target *to) {
    __m256 sums[TALL][2];
    for (int i = 0; i < TALL; i++) sums[i][0] = sums[i][1] = _mm256_setzero_ps();
    prefetch(to);
    for (size p = 0; p < depth; p++) {
        __m256 left = _mm256_load_ps(b + p * WIDE), right = _mm256_load_ps(b + p * WIDE + 8);
#pragma GCC unroll 6
        for (int i = 0; i < TALL; i++) {
            __m256 x = _mm256_broadcast_ss(a + p * TALL + i);
            sums[i][0] = _mm256_fmadd_ps(x, left, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(x, right, sums[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < TALL; i++) {
        store(to, i, 0, sums[i][0]);
        store(to, i, 8, sums[i][1]);
    }
}

// Pack x (rows, depth) in panels of `height` rows, the last one filled with zeros: out (panels, depth, height).
static inline __attribute__((always_inline)) void pack(const size height, size rows, size depth, matrix x, float *out) {
    size whole = rows / height * height;
    if (x.down == 1) { // one panel after the other would read each cache line several times
        for (size p = 0; p < depth; p += LINES)
            for (size row = 0; row < whole; row += height)
                for (size q = p; q < MIN(p + LINES, depth); q++)
                    memcpy(out + row * depth + q * height, at(x, row, q).x, height * sizeof *out);
    } else {
        for (size row = 0; row < whole; row += height) {
            float *to = out + row * depth;
            size p = 0;
            if (x.right == 1)
                for (; p + 8 < depth; p += 8) // the last terms go one by one: the eighth row reaches over the end of a panel of six
                    for (size first = 0; first < height; first += 8) {
                        __m256 block[8];
                        columns_of(height, first, at(x, row, p).x, x.down, block);
                        for (size i = 0; i < 8; i++) _mm256_storeu_ps(to + (p + i) * height + first, block[i]);
                    }
            for (; p < depth; p++)
                for (size i = 0; i < height; i++) to[p * height + i] = *at(x, row + i, p).x;
        }
    }
    if (whole < rows)
        for (size p = 0; p < depth; p++)
            for (size i = 0; i < height; i++) out[whole * depth + p * height + i] = whole + i < rows ? *at(x, whole + i, p).x : 0;
}
