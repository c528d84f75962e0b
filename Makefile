# strata: see README.md. `make deps` installs packages, `make` builds and never installs.
ifeq ($(origin CC),default)
CC      := gcc
endif
BUILD   ?= build
SAN     ?=
OPT     ?= -O2 -g
# Sizes are enumeration constants, also in sums of doubles, which newer clangs warn of.
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
           -Wconversion -Wno-sign-conversion -Wno-enum-float-conversion
ifdef CI
WARN    += -Werror
endif
CPPFLAGS += -D_GNU_SOURCE -Iir -I. -I$(BUILD)/gen
CFLAGS  += -std=c11 $(OPT) $(WARN) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
LDFLAGS += $(if $(SAN),-fsanitize=$(SAN)) -rdynamic
LDLIBS  := -lyaml -ljansson -lxxhash -lpcre2-8 -lmicrohttpd -lm -ldl -lpthread
# Sanitizers for the kernels that a build compiles; it has their functions by SAN.
KERNEL_SAN ?=
CPPFLAGS += $(if $(SAN),-DSTRATA_SANITIZED)
CPPFLAGS += $(if $(KERNEL_SAN),-DSTRATA_JIT_SANITIZE='"$(KERNEL_SAN)"')
JOBS    ?= $(shell nproc)
# `make V=1` shows every command in full.
V       ?=
Q       := $(if $(V),,@)
say      = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),,@echo '  $(1) $(2)')

# A build never installs; a missing header is one line, not a page of errors.
GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out check check-slow check-asan check-tsan check-gpu bench-gpu gpu-session demo deps clean layers fmt fmt-check,$(GOALS)),)
HEADERS := yaml.h jansson.h xxhash.h pcre2.h microhttpd.h $(if $(filter tests $(BUILD)/test/%,$(GOALS)),cmocka.h)
lacking := $(shell for h in $(HEADERS); do \
             printf '\043include <stdarg.h>\n\043include <stddef.h>\n\043include <stdint.h>\n\043define PCRE2_CODE_UNIT_WIDTH 8\n\043include <setjmp.h>\n\043include <%s>\n' $$h \
             | $(CC) -xc -fsyntax-only - 2>/dev/null || echo $$h; done)
ifeq ($(shell command -v $(firstword $(CC))),)
$(error no compiler $(CC): run 'make deps' as root, or install gcc or clang)
endif
ifneq ($(strip $(lacking)),)
$(error $(CC) finds no $(lacking): run 'make deps' as root, or install libyaml-dev libjansson-dev libxxhash-dev libpcre2-dev libmicrohttpd-dev libcmocka-dev)
endif
endif

SRC_ir      := $(wildcard ir/base/*.c ir/*.c)
SRC_codegen := $(wildcard codegen/*.c)
SRC_runtime := $(filter-out runtime/app%.c,$(wildcard runtime/*.c))
SRC_app     := $(wildcard runtime/app*.c)
SRC_compiler:= $(filter-out compiler/main.c,$(wildcard compiler/*.c))
SRC_lib     := $(SRC_ir) $(SRC_codegen) $(SRC_runtime) $(SRC_compiler)
OBJ_lib     := $(SRC_lib:%.c=$(BUILD)/obj/%.o)
# Texts of emitted C live as readable files in codegen/text and are compiled in as strings.
TEXTS       := $(wildcard codegen/text/*)
GEN_TEXT    := $(TEXTS:codegen/text/%=$(BUILD)/gen/text/%.inc) $(BUILD)/gen/runtime/page.inc $(BUILD)/gen/runtime/page_policy.inc
OBJ_tests   := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/*.c))
TESTS       := $(patsubst tests/unit/%.c,$(BUILD)/test/%,$(wildcard tests/unit/test_*.c))

FUZZ        := $(filter-out replay,$(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*.c)))
REPLAY      := $(FUZZ:%=$(BUILD)/replay/%)
SECONDS     ?= 60

.PHONY: all tests check check-clients check-random check-run check-slow check-asan check-tsan check-valgrind clean \
        deps demo fakecuda layers fmt fmt-check compile_commands.json fuzz bench bench-edit bench-kernels \
        bench-depth bench-engine bench-twin bench-serve bench-tokenize gpu-bundle check-gpu bench-gpu gpu-session $(FUZZ:%=fuzz-%)
all: $(BUILD)/strata $(BUILD)/strata-app.o $(BUILD)/strata-gpu.o $(BUILD)/strata-lib.o $(BUILD)/strata-lib.h

$(BUILD)/libstrata.a: $(OBJ_lib)
	@rm -f $@; ar rcs $@ $^

$(BUILD)/strata: $(BUILD)/obj/compiler/main.o $(BUILD)/libstrata.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/obj/%.o: %.c | $(GEN_TEXT)
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

.SECONDARY: $(GEN_TEXT) $(OBJ_tests)
# One C string literal a line, so that the text stays readable in a debugger too.
$(BUILD)/gen/text/%.inc: codegen/text/%
	@mkdir -p $(@D)
	@sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/"/' -e 's/$$/\\n"/' $< > $@

# The server's page in the same way, and the hashes that let its style and its script run.
$(BUILD)/gen/runtime/page.inc: runtime/page.html
	@mkdir -p $(@D)
	@sed -e 's/\\/\\\\/g' -e 's/["?]/\\&/g' -e 's/^/"/' -e 's/$$/\\n"/' $< > $@
$(BUILD)/gen/runtime/page_policy.inc: runtime/page.html
	@mkdir -p $(@D)
	@for part in style script; do \
	  hex=$$({ echo; sed -n "/^<$$part>/,/^<\/$$part>/p" $< | sed '1d;$$d'; } | sha256sum | cut -c1-64 | sed 's/../0x& /g'); \
	  printf "\"$$part-src 'sha256-%s'; \"\n" "$$(for b in $$hex; do printf "\\$$(printf %03o $$b)"; done | base64)"; \
	done > $@

# What `strata build` links kernels with: the runtime and the libraries that it needs, as one object
# beside the strata program. Never sanitized. Serving is plain HTTP, so what libmicrohttpd wants of
# GnuTLS, which has no static form, are functions that do nothing.
APP         := $(BUILD)/app
APP_CC      := $(CC) $(filter-out -DSTRATA_SANITIZED,$(CPPFLAGS)) -std=c11 -O2 -ffunction-sections -fdata-sections $(WARN)
OBJ_app     := $(patsubst %.c,$(APP)/obj/%.o,$(wildcard ir/base/*.c) $(SRC_runtime) $(SRC_app))
OBJ_roots   := $(patsubst %,$(APP)/obj/runtime/app_%.o,main library cpu gpu)
APP_LIBS    := $(foreach l,jansson pcre2-8 xxhash microhttpd,$(shell $(CC) -print-file-name=lib$(l).a))
$(APP)/obj/runtime/sample.o: APP_CC += -Wno-psabi
$(APP)/obj/%.o: %.c | $(GEN_TEXT)
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(APP_CC) -MMD -MP -c -o $@ $<
$(APP)/tls.c: $(lastword $(APP_LIBS))
	@mkdir -p $(@D)
	@nm -u $< 2>/dev/null | sed -n 's/^ *U \(gnutls_.*\)/\1/p' | sort -u | \
	  sed 's/.*/int &(void);\nint &(void)\n{\n    return 0;\n}/' > $@
$(APP)/tls.o: $(APP)/tls.c
	@$(APP_CC) -c -o $@ $<
$(APP)/runtime.a: $(filter-out $(OBJ_roots),$(OBJ_app)) $(APP)/tls.o
	@rm -f $@; ar rcs $@ $^
$(BUILD)/strata-app.o: $(APP)/obj/runtime/app_main.o $(APP)/obj/runtime/app_cpu.o $(APP)/runtime.a
$(BUILD)/strata-gpu.o: $(APP)/obj/runtime/app_main.o $(APP)/obj/runtime/app_gpu.o $(APP)/runtime.a
$(BUILD)/strata-lib.o: $(APP)/obj/runtime/app_library.o $(APP)/obj/runtime/app_cpu.o $(APP)/runtime.a
$(BUILD)/strata-%.o:
	$(call say,LD,$@)
	$(Q)ld -r -o $@ --start-group $^ $(APP_LIBS) --end-group
	@objcopy --strip-debug $@
$(BUILD)/strata-lib.h: runtime/strata.h
	@cp $< $@

$(BUILD)/test/%: tests/unit/%.c $(OBJ_tests) $(BUILD)/libstrata.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -Itests -o $@ $< $(OBJ_tests) $(BUILD)/libstrata.a $(LDFLAGS) -lcmocka $(LDLIBS)

# Fuzz targets: `make check` replays their corpora, `make fuzz-NAME SECONDS=60` and `make fuzz` search
# for more under libFuzzer with sanitizers. What is found goes to tests/fuzz/corpus/NAME.
$(BUILD)/replay/%: tests/fuzz/%.c tests/fuzz/replay.c $(BUILD)/libstrata.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -o $@ $< tests/fuzz/replay.c $(BUILD)/libstrata.a $(LDFLAGS) $(LDLIBS)

FUZZFLAGS := -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
$(BUILD)/fuzz/obj/%.o: %.c | $(GEN_TEXT)
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(SANCC) $(CPPFLAGS) $(FUZZFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/libstrata.a: $(SRC_lib:%.c=$(BUILD)/fuzz/obj/%.o)
	@rm -f $@; ar rcs $@ $^

$(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/fuzz/libstrata.a
	$(call say,LD,$@)
	$(Q)$(SANCC) $(CPPFLAGS) $(FUZZFLAGS) -fsanitize=fuzzer -o $@ $^ -rdynamic $(LDLIBS)

$(FUZZ:%=fuzz-%): fuzz-%: $(BUILD)/fuzz/%
	@mkdir -p $(BUILD)/fuzz/new/$*
	$< -max_total_time=$(SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
	  -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$*- $(BUILD)/fuzz/new/$* tests/fuzz/corpus/$*

fuzz: $(FUZZ:%=fuzz-%)

# Random specs beside the independent oracle, which needs Debian's python3-torch.
check-random: export STRATA_CACHE = $(if $(filter /%,$(BUILD)),,$(CURDIR)/)$(BUILD)/cache
check-random: all
	@if /usr/bin/python3 -c 'import torch, numpy, yaml' 2>/dev/null; then \
	    /usr/bin/python3 tests/fixtures/random_specs.py --count 20 && \
	    /usr/bin/python3 tests/fixtures/random_specs.py --count 20 --train; \
	else echo "== skipped: random specs need python3-torch, python3-numpy, python3-yaml"; fi

# A CUDA installation for tests without a GPU (tests/fakecuda/fake.h). Not sanitized: its functions may
# be interposed by those of a test program, whose kernels then run on the same machine.
FAKECUDA    := $(BUILD)/fakecuda
FAKE_driver := tests/fakecuda/driver.c tests/fakecuda/stream.c tests/cudacpu.c tests/cudacpu_check.c tests/cudacpu_load.c ir/base/arena.c
FAKE_nvrtc  := tests/fakecuda/nvrtc.c tests/cudacpu_build.c ir/base/arena.c ir/base/io.c ir/base/str.c ir/base/map.c
FAKE_cublas := tests/fakecuda/cublas.c
FAKE_FLAGS  := -std=c11 -O2 -g -ftree-vectorize $(WARN) -fPIC -fsemantic-interposition -Itests
FAKE_LIBS   := $(foreach d,$(FAKECUDA) $(FAKECUDA)/checked,$d/libcuda.so.1 $d/libnvrtc.so.13 $d/libcublas.so.13 $d/cudacpu.h)
fakecuda: $(FAKE_LIBS)

$(FAKECUDA)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(filter-out -DSTRATA_SANITIZED,$(CPPFLAGS)) $(FAKE_FLAGS) -MMD -MP -c -o $@ $<

$(FAKECUDA)/obj/checked.o: tests/fakecuda/nvrtc.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(filter-out -DSTRATA_SANITIZED,$(CPPFLAGS)) $(FAKE_FLAGS) -DCHECKED=1 -MMD -MP -c -o $@ $<

$(FAKECUDA)/cudacpu.h $(FAKECUDA)/checked/cudacpu.h: tests/cudacpu.h
	@mkdir -p $(@D)
	@cp $< $@

FAKE_LINK = $(CC) -shared -Wl,-soname,$(@F) -Wl,-rpath,'$$ORIGIN' -o $@ $^
$(FAKECUDA)/libcuda.so.1: $(FAKE_driver:%.c=$(FAKECUDA)/obj/%.o)
	$(call say,LD,$@)
	$(Q)$(FAKE_LINK) -ldl -lpthread
$(FAKECUDA)/libnvrtc.so.13: $(FAKE_nvrtc:%.c=$(FAKECUDA)/obj/%.o)
	$(call say,LD,$@)
	$(Q)$(FAKE_LINK) -lxxhash -ldl
$(FAKECUDA)/libcublas.so.13: $(FAKE_cublas:%.c=$(FAKECUDA)/obj/%.o) $(FAKECUDA)/libcuda.so.1
	$(call say,LD,$@)
	$(Q)$(FAKE_LINK)
$(FAKECUDA)/checked/libnvrtc.so.13: $(FAKECUDA)/obj/checked.o $(filter-out %/fakecuda/nvrtc.o,$(FAKE_nvrtc:%.c=$(FAKECUDA)/obj/%.o))
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(FAKE_LINK) -lxxhash -ldl
$(FAKECUDA)/checked/lib%: $(FAKECUDA)/lib%
	@mkdir -p $(@D)
	@cp $< $@

# Includes go down the layers, files and functions stay small.
layers:
	@sh tests/layers.sh

# Installs Debian packages where they are missing, as root; else prints the command.
deps:
	@sh .ci/deps

# All in one: installs what is missing, builds, tests (about five minutes on two cores).
check:
	@sh .ci/deps check
	@$(MAKE) --no-print-directory -j$(JOBS) all tests layers
	@$(MAKE) --no-print-directory check-run

tests: $(TESTS) $(REPLAY) $(FAKE_LIBS)

# Compiled kernels of the tests stay in the build folder, so that a second run is quick.
ABS_BUILD    := $(if $(filter /%,$(BUILD)),,$(CURDIR)/)$(BUILD)
SCRIPTS      := $(filter-out tests/program/lib.sh,$(wildcard tests/program/*.sh))
# What takes longest begins first, so that no worker is left with it at the end.
LONGEST      := $(patsubst %,$(BUILD)/test/test_%,ops decode compiled cli gpu cuda_depth same_bits lm) \
                tests/program/build.sh tests/program/cuda_compile.sh
TEST_COMMANDS = $(LONGEST) $(filter-out $(LONGEST),$(SCRIPTS) $(TESTS)) $(foreach f,$(FUZZ),'$(BUILD)/replay/$f tests/fuzz/corpus/$f')
check-run: export STRATA_CACHE = $(ABS_BUILD)/cache
check-run: export LOGS = $(BUILD)/log
check-run: export BUILD := $(BUILD)
check-run: export JOBS := $(JOBS)
check-run:
	@bash tests/run.sh $(TEST_COMMANDS)

# What takes longer: sanitizers, valgrind, hundreds of kills, a minute of
# every fuzz target.
check-slow: check
	STRATA_TEST_ALL=1 STRATA_TEST_NVRTC=1 $(MAKE) --no-print-directory check-run
	$(MAKE) --no-print-directory check-asan
	$(MAKE) --no-print-directory check-tsan
	$(MAKE) --no-print-directory check-valgrind
	BUILD=$(BUILD) bash tests/program/crash.sh 200
	$(MAKE) --no-print-directory check-clients
	$(MAKE) --no-print-directory fuzz
	$(MAKE) --no-print-directory check-random

# All tests under sanitizers; then training with a build whose kernels are sanitized too. One clang
# compiles both, whose runtime serves both.
SANCC ?= $(firstword $(foreach c,clang-14 clang-19,$(if $(wildcard $(shell $(c) -print-resource-dir 2>/dev/null)/lib/linux/libclang_rt.asan-x86_64.a),$(c))))
SAN_MAKE = $(MAKE) --no-print-directory -j$(JOBS) CC=$(SANCC) OPT='-O1 -g'
check-asan check-tsan: export STRATA_CLANG = $(SANCC)
check-asan: export ASAN_OPTIONS = detect_leaks=0:abort_on_error=1
check-asan: export UBSAN_OPTIONS = print_stacktrace=1:halt_on_error=1
check-asan:
	@test -n '$(SANCC)' || { echo 'no clang with sanitizers: apt-get install libclang-common-14-dev clang-14'; exit 1; }
	@$(SAN_MAKE) BUILD=build-asan SAN=address,undefined all tests
	@$(SAN_MAKE) BUILD=build-asan SAN=address,undefined check-run
	@$(SAN_MAKE) BUILD=build-asan-kernels SAN=address,undefined KERNEL_SAN=address,undefined all
	@BUILD=build-asan-kernels bash tests/slow/train.sh
TSAN_TESTS := test_thread test_engine test_serve test_serve_limits test_serve_clients
check-tsan: export TSAN_OPTIONS = halt_on_error=1
check-tsan:
	@test -n '$(SANCC)' || { echo 'no clang with sanitizers: apt-get install libclang-common-14-dev clang-14'; exit 1; }
	@$(SAN_MAKE) BUILD=build-tsan SAN=thread KERNEL_SAN=thread all $(TSAN_TESTS:%=build-tsan/test/%)
	@for t in $(TSAN_TESTS); do build-tsan/test/$$t || exit 1; done
	@BUILD=build-tsan bash tests/slow/train.sh
check-valgrind: all
	@BUILD=$(BUILD) bash tests/slow/valgrind.sh

# The server beside real clients.
check-clients: all
	@for t in openai page hostile overload; do echo "== tests/slow/$$t.sh"; BUILD=$(BUILD) bash tests/slow/$$t.sh || exit 1; done

# Speed of CPU kernels, for people to read: bench-kernels (products and attention, as a share of the
# machine's measured multiply-add peak), bench-depth (beside the speed of memcpy), bench-engine (a step
# of serving without the model's run).
$(BUILD)/bench_%: tests/bench/bench_%.c $(BUILD)/libstrata.a
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -Itests -o $@ $< $(BUILD)/libstrata.a $(LDFLAGS) $(LDLIBS)
.PRECIOUS: $(BUILD)/bench_%
bench-kernels bench-depth bench-engine: bench-%: $(BUILD)/bench_%
	$<

# Trains examples/tiny-moe on the King James Bible for about two minutes and lets it write.
demo:
	@sh .ci/deps demo
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@$(MAKE) --no-print-directory $(BUILD)/demo/kjv.txt
	@BUILD=$(BUILD) bash examples/tiny-moe/demo.sh

SOURCES = $(wildcard ir/base/*.[ch] ir/*.[ch] codegen/*.[ch] runtime/*.[ch] compiler/*.[ch] tests/*.[ch] tests/*/*.[ch])
fmt:
	clang-format -i $(SOURCES)
fmt-check:
	clang-format --dry-run -Werror $(SOURCES)

# For editors and clang tools.
compile_commands.json:
	@{ echo '['; sep=''; for f in $(SRC_lib) compiler/main.c $(wildcard tests/*.c tests/*/*.c); do \
	  printf '%s{"directory": "%s", "file": "%s", "command": "%s -c %s"}' "$$sep" '$(CURDIR)' $$f \
	    '$(CC) $(subst ",\",$(CPPFLAGS) $(CFLAGS)) -Itests' $$f; sep=', '; done; echo ']'; } > $@

# Whole training steps beside the machine's peak and PyTorch, the price of attention residuals, and the
# time from an edit to the first step; also in $(BUILD)/bench.json. bench-edit: only the last.
bench: all
	/usr/bin/python3 tests/bench/bench.py --build $(BUILD) all
bench-edit: all
	/usr/bin/python3 tests/bench/bench.py --build $(BUILD) edit

# Whether depth attention pays on a small Kimi Linear: validation losses of twins, three seeds.
STEPS = 400
SEEDS = 1 2 3
bench-twin: all $(BUILD)/demo/kjv.txt
	BUILD=$(BUILD) tests/bench/twin.sh specs/kimi-small.yaml specs/kimi-small-standard.yaml $(STEPS) \
	  "$(SEEDS)" --set train.batch_size=4 --set train.schedule.decay=100

$(BUILD)/demo/kjv.txt: # one verse a line, without its number
	@mkdir -p $(@D)
	bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' > $@.part && mv $@.part $@

# Text to ids: megabytes a second of CPU time on 100 MB of the shared data's texts.
bench-tokenize: all
	@BUILD=$(BUILD) bash tests/bench/tokenize.sh

# A server under load; PEER= and PEER_MODEL= put llama-server beside it (tests/bench/serve.sh).
bench-serve: all
	@BUILD=$(BUILD) bash tests/bench/serve.sh

# The GPU suite. gpu-bundle builds what it needs into $(BUILD)/gpu, where there may be no GPU: programs that
# want only glibc, with their libraries inside, and (with NVRTC here) the machine code of all their kernels;
# the same in one file is $(BUILD)/gpu-carry/bundle.tar.xz. check-gpu, bench-gpu and, for both within one
# budget of seconds, gpu-session run there or wherever either folder and this tree were copied to; a machine
# with CUDA and Python (bench-gpu: with PyTorch) is enough, also without make:
#   python3 tests/gpu/session.py --bin build/gpu-carry --out RESULTS --budget 540
GPU       := $(BUILD)/gpu
GPU_TESTS := test_compiled test_gpu test_lm test_serving $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_cuda_*.c))
GPU_LIBS  := -l:libyaml.a -l:libjansson.a -l:libxxhash.a -l:libpcre2-8.a -l:libmicrohttpd.a $(APP)/tls.o -lm -ldl -lpthread
GPU_OUT   ?= tests/gpu-results
gpu-bundle: $(GPU)/strata $(GPU)/bench_gpu $(GPU_TESTS:%=$(GPU)/%) $(GPU)/corpus.txt $(GPU)/libcmocka.so.0 $(BUILD)/cubins $(FAKE_LIBS)
	@git describe --always --dirty > $(GPU)/commit 2>/dev/null || echo unknown > $(GPU)/commit
	@BUILD=$(BUILD) bash tests/gpu/bundle.sh
$(GPU)/strata: $(BUILD)/obj/compiler/main.o $(BUILD)/libstrata.a | $(APP)/tls.o
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -s -o $@ $^ $(GPU_LIBS)
$(GPU)/test_%: tests/unit/test_%.c $(OBJ_tests) $(BUILD)/libstrata.a | $(APP)/tls.o
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Itests -s -o $@ $< $(OBJ_tests) $(BUILD)/libstrata.a $(LDFLAGS) -Wl,-rpath,'$$ORIGIN' -lcmocka $(GPU_LIBS)
$(GPU)/bench_gpu: tests/bench/bench_gpu.c $(BUILD)/libstrata.a | $(APP)/tls.o
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -s -o $@ $< $(BUILD)/libstrata.a $(LDFLAGS) $(GPU_LIBS)
$(BUILD)/cubins: tests/gpu/cubins.c $(BUILD)/libstrata.a
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -o $@ $< $(BUILD)/libstrata.a $(LDFLAGS) $(LDLIBS)
$(GPU)/libcmocka.so.0:
	@mkdir -p $(@D)
	@cp -L $$($(CC) -print-file-name=libcmocka.so) $@
$(GPU)/corpus.txt: $(BUILD)/demo/kjv.txt
	@mkdir -p $(@D)
	@cp $< $@
GPU_BUDGET ?= 3600
check-gpu:
	@python3 tests/gpu/check.py --bin $(GPU) --out $(GPU_OUT) --budget $(GPU_BUDGET)
bench-gpu:
	@python3 tests/bench/gpu.py --bin $(GPU) --out $(GPU_OUT) --budget $(GPU_BUDGET)
gpu-session:
	@python3 tests/gpu/session.py --bin $(GPU) --out $(GPU_OUT) --budget $(GPU_BUDGET)

clean:
	rm -rf $(BUILD) build-asan build-asan-kernels build-tsan build-clang

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
