/* Pages and states of a model's pools (runtime/lm.h): which are held, by how many sequences; which
 * are kept because a later prompt may begin with the same tokens; which are free. Numbers only:
 * what is in them is the caller's to write.
 *
 * The index of kept pages is a forest: a page follows its `parent`, the page of the LM_PAGE tokens
 * before it (PAGE_none for the first of a text), and is found by a hash of all tokens up to its
 * end and a salt. Parent and tokens are compared too, so that pages with the same hash are still
 * told apart. Whoever holds an indexed page holds its parents. Pages that nobody holds stay in the
 * index until their place is needed: the least recently used goes first, children before parents.
 *
 * A snapshot is a state kept at the end of an indexed page; it goes when the page goes, or when
 * another one needs its place and it is the least recently used. All calls of one thread at a
 * time; only pages_open allocates. */
#ifndef STRATA_RUNTIME_PAGES_H
#define STRATA_RUNTIME_PAGES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE_none = -1 };

/* Hash of all tokens up to the end of a page (128 bits of XXH3, chained). */
struct page_key {
    uint64_t low, high;
};
/* Key of a page of LM_PAGE tokens after the one with key *parent (NULL: none). */
struct page_key page_key_of(const struct page_key *parent, uint64_t salt, const int32_t *tokens);

/* A full page's place in the index. */
struct page_text {
    int32_t parent;
    struct page_key key;
    uint64_t salt;
    const int32_t *tokens; /* [LM_PAGE] */
};

struct pages;
/* Pages 0 .. pages-1; states first_state .. first_state+snapshots-1 for snapshots. NULL without
 * memory. */
struct pages *pages_open(int64_t pages, int64_t first_state, int64_t snapshots);
void pages_close(struct pages *p);

/* Pages that pages_take could give one after the other: free ones, and kept ones of nobody. */
int64_t pages_available(const struct pages *p);
/* Of those, the ones in the index. */
int64_t pages_cached(const struct pages *p);
/* A page for one holder, in no index; PAGE_none where all are held. */
int32_t pages_take(struct pages *p);
/* One more holder of an indexed page. */
void pages_hold(struct pages *p, int32_t page);
/* How many hold it. */
int32_t pages_holders(const struct pages *p, int32_t page);
/* One holder less of each of n pages, in the order of their text. What nobody holds any more is
 * free, or kept where it is indexed. */
void pages_release(struct pages *p, const int32_t *page, int64_t n);

/* The indexed page with this text, not held by that; PAGE_none where there is none. */
int32_t pages_find(const struct pages *p, const struct page_text *t);
/* A held page that is full joins the index. The page that the caller holds from now on: `page`, or
 * where one with this text was there already, that one (and `page` is free). */
int32_t pages_add(struct pages *p, const struct page_text *t, int32_t page);

/* The state that is the snapshot at the end of an indexed page, or -1. */
int32_t pages_snapshot(const struct pages *p, int32_t page);
/* The snapshot at the end of this page was of use just now. */
void pages_touch_snapshot(struct pages *p, int32_t page);
/* A state to write a snapshot for this indexed page to; -1 where it has one or none is kept. */
int32_t pages_keep_snapshot(struct pages *p, int32_t page);
/* It could not be written. */
void pages_drop_snapshot(struct pages *p, int32_t page);
/* Snapshots that are kept now. */
int64_t pages_snapshots(const struct pages *p);
/* Aborts where counts, lists and index do not fit together; slow, for tests. */
void pages_check(const struct pages *p);
#endif
