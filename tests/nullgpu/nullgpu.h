// A GPU that computes nothing and counts everything: the pretended card, the counters, and the memory that the libraries share.
#pragma once
#include <stddef.h>
#include <stdlib.h>

typedef long long Count;

// What is counted. nullgpu_names holds the same words for the tests, in this order.
#define COUNTERS(X) \
    X(launches) X(triton_launches) X(graph_launches) X(captured) X(replayed) X(products) X(product_mflop) \
    X(uploads) X(uploaded_bytes) X(downloads) X(downloaded_bytes) X(device_copies) X(fills) \
    X(blocking_copies) X(stream_syncs) X(event_syncs) X(device_syncs) \
    X(allocations) X(releases) X(host_allocations) X(refusals) X(collectives) X(collective_bytes)
#define ENTRY(name) COUNT_##name,
enum { COUNTERS(ENTRY) COUNTER_KINDS };
#undef ENTRY
#define ADD(name, n) nullgpu_add(COUNT_##name, (Count)(n))
void nullgpu_add(int counter, Count n);

// The pretended card, from the environment (tests/nullgpu/cards.py).
static inline Count setting(const char *name, Count otherwise) {
    const char *text = getenv(name);
    return text ? atoll(text) : otherwise;
}
#define CAPABILITY setting("NULLGPU_CAPABILITY", 90)
#define MULTIPROCESSORS setting("NULLGPU_MULTIPROCESSORS", 132)
#define MEMORY setting("NULLGPU_MEMORY", 80LL << 30)
#define L2_BYTES setting("NULLGPU_L2", 50LL << 20)
#define DEVICES setting("NULLGPU_DEVICES", 1)
#define CONTEXT setting("NULLGPU_CONTEXT", 500LL << 20)  // of a card's memory, which the driver's context takes
const char *nullgpu_name(void);
int nullgpu_shared_bytes(void);  // shared memory that one block may ask for

// Memory of a card. Addresses are reserved and cannot be read or written, as a real card's, from the host.
int nullgpu_take(size_t bytes);  // 0 if the card is full: the refusal that a real one gives
void nullgpu_give(size_t bytes);
size_t nullgpu_free_bytes(void);
void *nullgpu_reserve(size_t bytes);  // a range of device addresses
size_t nullgpu_release(void *address);  // returns its size
int nullgpu_on_device(const void *address);

// Work for the card (a launch, a product, a copy on the card): counted, or recorded if this thread captures a graph. Returns 1 if counted.
int nullgpu_work(int counter);
// The host waits for the card: counted, or refused if this thread captures a graph, which is invalid from then on. Returns 1 if counted.
int nullgpu_wait(int counter);
int nullgpu_capturing(void);
