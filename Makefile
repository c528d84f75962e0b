# strata: see README.md. `make deps` installs packages, `make` builds and never installs.
CC      ?= gcc
BUILD   ?= build
SAN     ?=
OPT     ?= -O2 -g
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
           -Wconversion -Wno-sign-conversion
ifdef CI
WARN    += -Werror
endif
CPPFLAGS += -D_GNU_SOURCE -Iir -I. -I$(BUILD)/gen
CFLAGS  += -std=c11 $(OPT) $(WARN) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
LDFLAGS += $(if $(SAN),-fsanitize=$(SAN)) -rdynamic
LDLIBS  := -lyaml -ljansson -lxxhash -lm -ldl -lpthread

SRC_ir      := $(wildcard ir/base/*.c ir/*.c)
SRC_codegen := $(wildcard codegen/*.c)
SRC_runtime := $(wildcard runtime/*.c)
SRC_compiler:= $(filter-out compiler/main.c,$(wildcard compiler/*.c))
SRC_lib     := $(SRC_ir) $(SRC_codegen) $(SRC_runtime) $(SRC_compiler)
OBJ_lib     := $(SRC_lib:%.c=$(BUILD)/obj/%.o)
# Texts of emitted C live as readable files in codegen/text and are compiled in as strings.
TEXTS       := $(wildcard codegen/text/*)
GEN_TEXT    := $(TEXTS:codegen/text/%=$(BUILD)/gen/text/%.inc)
OBJ_tests   := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/*.c))
TESTS       := $(patsubst tests/unit/%.c,$(BUILD)/test/%,$(wildcard tests/unit/test_*.c))

FUZZ        := $(filter-out replay,$(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*.c)))
REPLAY      := $(FUZZ:%=$(BUILD)/replay/%)
SECONDS     ?= 60

.PHONY: all check check-slow clean deps layers fuzz bench-kernels $(FUZZ:%=fuzz-%)
all: $(if $(wildcard compiler/main.c),$(BUILD)/strata,$(BUILD)/libstrata.a)

$(BUILD)/libstrata.a: $(OBJ_lib)
	@rm -f $@; ar rcs $@ $^

$(BUILD)/strata: $(BUILD)/obj/compiler/main.o $(BUILD)/libstrata.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/obj/%.o: %.c | $(GEN_TEXT)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

.SECONDARY: $(GEN_TEXT)
# One C string literal a line, so that the text stays readable in a debugger too.
$(BUILD)/gen/text/%.inc: codegen/text/%
	@mkdir -p $(@D)
	@sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/"/' -e 's/$$/\\n"/' $< > $@

$(BUILD)/test/%: tests/unit/%.c $(OBJ_tests) $(BUILD)/libstrata.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -Itests -o $@ $< $(OBJ_tests) $(BUILD)/libstrata.a $(LDFLAGS) -lcmocka $(LDLIBS)

# Fuzz targets: `make check` replays their corpora, `make fuzz-NAME SECONDS=60` and `make fuzz` search
# for more under libFuzzer with sanitizers. What is found goes to tests/fuzz/corpus/NAME.
$(BUILD)/replay/%: tests/fuzz/%.c tests/fuzz/replay.c $(BUILD)/libstrata.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -o $@ $< tests/fuzz/replay.c $(BUILD)/libstrata.a $(LDFLAGS) $(LDLIBS)

FUZZFLAGS := -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
$(BUILD)/fuzz/obj/%.o: %.c | $(GEN_TEXT)
	@mkdir -p $(@D)
	clang $(CPPFLAGS) $(FUZZFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/libstrata.a: $(SRC_lib:%.c=$(BUILD)/fuzz/obj/%.o)
	@rm -f $@; ar rcs $@ $^

$(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/fuzz/libstrata.a
	clang $(CPPFLAGS) $(FUZZFLAGS) -fsanitize=fuzzer -o $@ $^ -rdynamic $(LDLIBS)

$(FUZZ:%=fuzz-%): fuzz-%: $(BUILD)/fuzz/%
	@mkdir -p $(BUILD)/fuzz/new/$*
	$< -max_total_time=$(SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
	  -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$*- $(BUILD)/fuzz/new/$* tests/fuzz/corpus/$*

fuzz: $(FUZZ:%=fuzz-%)

# A minute of every fuzz target on top of `make check`.
check-slow: check fuzz

# Includes go down the layers, files and functions stay small.
layers:
	@sh tests/layers.sh

# Compiled kernels of the tests stay in the build folder, so that a second run is quick.
check: export STRATA_CACHE = $(if $(filter /%,$(BUILD)),,$(CURDIR)/)$(BUILD)/cache
check: all layers $(TESTS) $(REPLAY)
	@for t in $(TESTS); do echo "== $$t"; $$t || exit 1; done
	@for t in $(FUZZ); do echo "== replay $$t"; $(BUILD)/replay/$$t tests/fuzz/corpus/$$t || exit 1; done

# Speed of CPU kernels, for people to read: bench-kernels (products and attention, as a share of the
# machine's measured multiply-add peak), bench-depth (beside the speed of memcpy).
$(BUILD)/bench_%: tests/bench/bench_%.c $(BUILD)/libstrata.a
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -Itests -o $@ $< $(BUILD)/libstrata.a $(LDFLAGS) $(LDLIBS)
.PRECIOUS: $(BUILD)/bench_%
bench-kernels bench-depth: bench-%: $(BUILD)/bench_%
	$<

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
