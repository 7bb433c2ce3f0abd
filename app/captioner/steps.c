/* A beam search over the attention decoder, but for its products: what torch does in ninety small
 * operations a word, each of which waits for its own code, since the weights of the products have
 * driven it out of the caches.
 *
 * A row is a beam that still grows. Rows of an image lie together; what belongs to an image is read
 * where it lies and never copied. Every row is computed by itself and in one order, so a caption is
 * the same bit by bit whatever else is searched.
 *
 * ctypes calls these functions (compiled.py); they need no Python. Arrays are contiguous.
 *
 * B images, K beams, N rows, H width of the LSTM, R regions, V words, T steps
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
/* compiled for several processors; the loader takes the best that this one can do */
#if __GNUC__ >= 12
#define EXPORTED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define EXPORTED __attribute__((target_clones("default", "avx2")))
#endif
#else
#define EXPORTED
#endif
#define INLINED static inline __attribute__((always_inline))

typedef float f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i32x8 __attribute__((vector_size(32), aligned(4), may_alias));

enum { LANES = 8, MOST_BEAMS = 16 };

struct search {
    int64_t images, beams, width, words, regions;
    int64_t bos, eos, banned_count, least_words, most_words, repeat; /* repeat: no_repeat_ngram_size */
    int64_t step, rows;
    float penalty; /* (step + 1) ** length_penalty */
    const int64_t *banned;
    /* the decoder's: (V, 5H), and what it sees of the images: (B, 5H), (B, R, H) twice, (B, H) */
    const float *word_gates, *image_gates, *values, *keys, *whole;
    /* what torch has just computed: (N, ...) */
    float *product;
    const float *second;
    /* of rows: slot is image * K + beam */
    int64_t *slots;
    float *hidden, *cell, *spare_hidden, *spare_cell, *sentinel, *joined; /* (N, H), joined (N, 2H) */
    /* of beams (B, K), and of images (B) */
    int64_t *row_of, *last_word;
    float *log_probs, *scores;
    uint8_t *finished, *gone;
    int64_t *said, *spare_said; /* (B, K, most_words + 2) */
    /* of every step: (T, B, K), attention (T, B, K, R + 1) */
    int64_t *trace_words, *trace_parents;
    float *trace_log_probs, *trace_attention;
};

/* --- eight numbers at a time ------------------------------------------------------------------ */

INLINED f32x8 load(const float *from) { return *(const f32x8 *)from; }
INLINED void store(float *to, f32x8 numbers) { *(f32x8 *)to = numbers; }
INLINED f32x8 all(float number) { return (f32x8){0} + number; }

INLINED f32x8 choose(i32x8 where, f32x8 yes, f32x8 no) {
    return (f32x8)((where & (i32x8)yes) | (~where & (i32x8)no));
}

INLINED float sum(f32x8 numbers) {
    return ((numbers[0] + numbers[4]) + (numbers[2] + numbers[6]))
         + ((numbers[1] + numbers[5]) + (numbers[3] + numbers[7]));
}

/* exp, to 2 units in the last place: 2^n times the Taylor series of the rest, |rest| <= ln 2 / 2 */
INLINED f32x8 exponential(f32x8 x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves whole numbers alone */
    x = choose(x < all(-87.0f), all(-87.0f), x);
    x = choose(x > all(88.0f), all(88.0f), x);
    f32x8 shifted = x * 1.44269504f + round;
    f32x8 n = shifted - round;
    f32x8 rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f32x8 series = all(1.0f / 5040);
    series = series * rest + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    i32x8 power = ((i32x8)shifted - (i32x8)all(round) + 127) << 23;
    return series * (f32x8)power;
}

INLINED f32x8 sigmoid(f32x8 x) { return 1.0f / (1.0f + exponential(-x)); }

/* x near 0 by its series, where the difference of two numbers near 1 would lose digits */
INLINED f32x8 tangent(f32x8 x) {
    f32x8 square = x * x;
    f32x8 near = x * (1.0f - square * (1.0f / 3) + square * square * (2.0f / 15));
    f32x8 far = 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
    return choose((square < all(0.0025f)), near, far);
}

/* the width is a multiple of four times eight: four sums do not wait for each other */
INLINED float dot(const float *left, const float *right, int64_t width) {
    f32x8 sums[4] = {{0}, {0}, {0}, {0}};
    for (int64_t at = 0; at < width; at += 4 * LANES)
        for (int i = 0; i < 4; i++)
            sums[i] += load(left + at + i * LANES) * load(right + at + i * LANES);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* --- the decoder ------------------------------------------------------------------------------ */

/* Hidden state, cell and sentinel of the next step; product: what the gates take of the hidden
 * state, or nothing before the first word. */
EXPORTED void lstm(struct search *s) {
    const int64_t H = s->width;
    for (int64_t n = 0; n < s->rows; n++) {
        const int64_t slot = s->slots[n];
        const float *word = s->word_gates + s->last_word[slot] * 5 * H;
        const float *image = s->image_gates + slot / s->beams * 5 * H;
        const float *own = s->product ? s->product + n * 5 * H : 0;
        for (int64_t at = 0; at < H; at += LANES) {
            f32x8 gates[5]; /* in, forget, out, candidate, sentinel */
            for (int g = 0; g < 5; g++) {
                gates[g] = load(word + g * H + at) + load(image + g * H + at);
                if (own) gates[g] += load(own + g * H + at);
            }
            float *cell = s->cell + n * H + at;
            f32x8 kept = sigmoid(gates[1]) * load(cell) + sigmoid(gates[0]) * tangent(gates[3]);
            f32x8 seen = tangent(kept);
            store(cell, kept);
            store(s->hidden + n * H + at, sigmoid(gates[2]) * seen);
            store(s->sentinel + n * H + at, sigmoid(gates[4]) * seen);
        }
    }
}

INLINED void softmax(float *scores, int64_t count) {
    float most = scores[0], total = 0.0f;
    for (int64_t r = 1; r < count; r++) most = scores[r] > most ? scores[r] : most;
    for (int64_t r = 0; r < count; r += LANES) {
        float part[LANES] = {0};
        const int64_t here = count - r < LANES ? count - r : LANES;
        memcpy(part, scores + r, here * sizeof(float));
        store(part, exponential(load(part) - most));
        for (int64_t i = 0; i < here; i++) total += scores[r + i] = part[i];
    }
    for (int64_t r = 0; r < count; r++) scores[r] /= total;
}

/* Attention over regions and sentinel, and what it sees; product: the query, second: the key of
 * the sentinel. */
EXPORTED void attend(struct search *s) {
    const int64_t H = s->width, R = s->regions, slots = s->images * s->beams;
    const float scale = 1.0f / sqrtf((float)H);
    for (int64_t n = 0; n < s->rows; n++) {
        const int64_t slot = s->slots[n], image = slot / s->beams;
        const float *query = s->product + n * H, *sentinel = s->sentinel + n * H;
        const float *keys = s->keys + image * R * H, *values = s->values + image * R * H;
        float *weights = s->trace_attention + (s->step * slots + slot) * (R + 1);
        for (int64_t r = 0; r < R; r++) weights[r] = dot(query, keys + r * H, H) * scale;
        weights[R] = dot(query, s->second + n * H, H) * scale;
        softmax(weights, R + 1);
        float *joined = s->joined + n * 2 * H;
        memcpy(joined, s->hidden + n * H, H * sizeof(float));
        for (int64_t at = 0; at < H; at += 4 * LANES) {
            f32x8 seen[4];
            for (int i = 0; i < 4; i++) seen[i] = load(sentinel + at + i * LANES) * weights[R];
            for (int64_t r = 0; r < R; r++)
                for (int i = 0; i < 4; i++)
                    seen[i] += load(values + r * H + at + i * LANES) * weights[r];
            for (int i = 0; i < 4; i++) store(joined + H + at + i * LANES, seen[i]);
        }
    }
}

/* What the word scores are computed from, in place of product: context and the whole image. */
EXPORTED void mix(struct search *s) {
    const int64_t H = s->width;
    for (int64_t n = 0; n < s->rows; n++) {
        float *mixed = s->product + n * H;
        const float *whole = s->whole ? s->whole + s->slots[n] / s->beams * H : 0;
        for (int64_t at = 0; at < H; at += LANES) {
            f32x8 seen = load(mixed + at);
            if (whole) seen += load(whole + at);
            store(mixed + at, tangent(seen));
        }
    }
}

/* --- the search ------------------------------------------------------------------------------- */

struct candidate {
    int64_t word, parent;
    float word_log_prob, log_prob, score;
};

/* Keep the best, in order; of equals the one that came first. */
INLINED int64_t keep(struct candidate *best, int64_t count, int64_t most, struct candidate one) {
    if (one.score == -INFINITY || (count == most && one.score <= best[most - 1].score)) return count;
    int64_t at = count < most ? count : most - 1;
    for (; at > 0 && one.score > best[at - 1].score; at--) best[at] = best[at - 1];
    best[at] = one;
    return count < most ? count + 1 : most;
}

/* Make words impossible: the banned ones, an end too early, and what would say a sequence again
 * (Paulus et al. 2018, 2.5). */
INLINED void bar(const struct search *s, const int64_t *said, float *logits) {
    const int64_t length = s->step + 1, again = s->repeat - 1;
    logits[s->bos] = -INFINITY;
    for (int64_t i = 0; i < s->banned_count; i++) logits[s->banned[i]] = -INFINITY;
    if (s->step < s->least_words) logits[s->eos] = -INFINITY;
    for (int64_t at = 0; s->repeat && at + again < length; at++)
        if (!memcmp(said + at, said + length - again, again * sizeof(*said)))
            logits[said[at + again]] = -INFINITY;
}

INLINED float log_sum_exp(const float *logits, int64_t words, float most) {
    f32x8 sums = all(0.0f);
    int64_t v = 0;
    for (; v + LANES <= words; v += LANES) sums += exponential(load(logits + v) - most);
    float rest[LANES];
    for (int i = 0; i < LANES; i++) rest[i] = v + i < words ? logits[v + i] : -INFINITY;
    sums += exponential(load(rest) - most);
    return most + logf(sum(sums));
}

/* The K most likely words after one beam; at the last step the end alone, however unlikely. */
INLINED int64_t following(struct search *s, int64_t slot, int64_t beam, struct candidate *best) {
    float *logits = s->product + s->row_of[slot] * s->words;
    const float so_far = s->log_probs[slot];
    bar(s, s->said + slot * (s->most_words + 2), logits);
    int64_t count = 0;
    float least = -INFINITY;
    for (int64_t v = 0; v < s->words; v++) {
        if (logits[v] <= least) continue;
        count = keep(best, count, s->beams, (struct candidate){v, beam, 0.0f, 0.0f, logits[v]});
        if (count == s->beams) least = best[count - 1].score;
    }
    const float whole = log_sum_exp(logits, s->words, count ? best[0].score : 0.0f);
    if (s->step == s->most_words) {
        const float end = logits[s->eos];
        best[0] = (struct candidate){s->eos, beam, 0.0f, 0.0f, end > -1.7e38f ? end : -1.7e38f};
        count = 1;
    }
    for (int64_t i = 0; i < count; i++) {
        best[i].word_log_prob = best[i].score - whole;
        best[i].log_prob = so_far + best[i].word_log_prob;
        best[i].score = best[i].log_prob / s->penalty;
    }
    return count;
}

/* The K best continuations of all beams of an image. A finished beam has one: the end mark again,
 * at no cost. */
INLINED void choose_words(struct search *s, int64_t image, struct candidate *best) {
    int64_t count = 0;
    for (int64_t k = 0; k < s->beams; k++) {
        const int64_t slot = image * s->beams + k;
        struct candidate next[MOST_BEAMS] = {
            {s->eos, k, 0.0f, s->log_probs[slot], s->scores[slot]}};
        int64_t found = 1;
        if (!s->finished[slot]) found = following(s, slot, k, next);
        for (int64_t i = 0; i < found; i++) count = keep(best, count, s->beams, next[i]);
    }
    for (int64_t k = count; k < s->beams; k++) /* a slot that holds nothing */
        best[k] = (struct candidate){s->eos, k, 0.0f, -INFINITY, -INFINITY};
}

/* Let every beam grow by a word; product: the word scores. Images all of whose beams have ended are
 * gone afterwards. */
EXPORTED void advance(struct search *s) {
    const int64_t K = s->beams, slots = s->images * K, length = s->most_words + 2;
    for (int64_t image = 0; image < s->images; image++) {
        struct candidate best[MOST_BEAMS];
        int64_t *words = s->trace_words + s->step * slots + image * K;
        int64_t *parents = s->trace_parents + s->step * slots + image * K;
        float *log_probs = s->trace_log_probs + s->step * slots + image * K;
        if (s->gone[image]) {
            for (int64_t k = 0; k < K; k++) words[k] = s->eos, parents[k] = k, log_probs[k] = 0.0f;
            continue;
        }
        choose_words(s, image, best);
        int growing = 0;
        for (int64_t k = 0; k < K; k++) {
            const int64_t slot = image * K + k;
            int64_t *said = s->spare_said + slot * length;
            words[k] = s->last_word[slot] = best[k].word;
            parents[k] = best[k].parent;
            log_probs[k] = best[k].word_log_prob;
            s->log_probs[slot] = best[k].log_prob;
            s->scores[slot] = best[k].score;
            s->finished[slot] = best[k].word == s->eos || best[k].score == -INFINITY;
            memcpy(said, s->said + (image * K + parents[k]) * length, (s->step + 1) * sizeof(*said));
            said[s->step + 1] = best[k].word;
            growing |= !s->finished[slot];
        }
        s->gone[image] = !growing;
    }
    int64_t *said = s->said;
    s->said = s->spare_said;
    s->spare_said = said;
}

/* Bring together the rows of the beams that grow, each with the state of its parent. */
EXPORTED void gather(struct search *s) {
    const int64_t K = s->beams, H = s->width, slots = s->images * K;
    const int64_t *parents = s->trace_parents + s->step * slots;
    int64_t rows = 0;
    for (int64_t image = 0; image < s->images; image++) {
        int64_t from[MOST_BEAMS];
        if (s->gone[image]) continue;
        for (int64_t k = 0; k < K; k++) from[k] = s->row_of[image * K + parents[image * K + k]];
        for (int64_t k = 0; k < K; k++) {
            if (s->finished[image * K + k]) continue;
            memcpy(s->spare_hidden + rows * H, s->hidden + from[k] * H, H * sizeof(float));
            memcpy(s->spare_cell + rows * H, s->cell + from[k] * H, H * sizeof(float));
            s->slots[rows] = image * K + k;
            s->row_of[image * K + k] = rows++;
        }
    }
    float *hidden = s->hidden, *cell = s->cell;
    s->hidden = s->spare_hidden, s->cell = s->spare_cell;
    s->spare_hidden = hidden, s->spare_cell = cell;
    s->rows = rows;
    s->step++;
}

/* Follow the parents from the last step to the first. (B, K, T) each, lengths (B, K), attention
 * (B, K, T, R + 1): it was its parent that paid attention. */
EXPORTED void read_back(
    struct search *s, int64_t *words, int64_t *lengths, float *log_probs, float *attention) {
    const int64_t K = s->beams, slots = s->images * K, T = s->step + 1, paid = s->regions + 1;
    for (int64_t slot = 0; slot < slots; slot++) {
        int64_t at = slot; /* the same beam, one step earlier and earlier */
        lengths[slot] = 0;
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t here = t * slots + at;
            words[slot * T + t] = s->trace_words[here];
            lengths[slot] += s->trace_words[here] != s->eos;
            log_probs[slot * T + t] = s->trace_log_probs[here];
            at = slot / K * K + s->trace_parents[here];
            memcpy(attention + (slot * T + t) * paid, s->trace_attention + (t * slots + at) * paid,
                   paid * sizeof(float));
        }
        if (!s->finished[slot]) s->log_probs[slot] = s->scores[slot] = -INFINITY;
    }
}
