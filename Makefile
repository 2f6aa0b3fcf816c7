# libmoedisco - one Makefile, no configure. `make help` lists the targets.
VERSION   := 0.1.0
SOVERSION := 0
PREFIX     ?= /usr/local
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
BINDIR     ?= $(PREFIX)/bin
CC  ?= cc
CXX ?= c++
AR  ?= ar
OBJCOPY ?= objcopy
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
ARCH := $(shell uname -m)

ifneq ($(V),1)
Q := @
say = @printf '  %-7s %s\n' $(1) $(2);
else
say =
endif

.DEFAULT_GOAL := all
.PHONY: all host help demo demo-run check check-run check-abi check-headers check-install check-gpu bench bench-gpu gpu-pack bench-methods asan ubsan \
    tsan crash crash-run valgrind valgrind-run analyze analyze-run tidy tidy-run fuzz fuzz-run fuzz-merge fuzz-merge-run \
    fuzz-build ci-full install uninstall dist clean
.DELETE_ON_ERROR:

# ---- flags; objects lie in a directory named by them ----
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings -Wvla \
    -Wformat=2 $(if $(WERROR),-Werror)
JANSSON_CFLAGS := $(shell $(PKG_CONFIG) --cflags jansson 2>/dev/null)
JANSSON_LIBS   := $(or $(shell $(PKG_CONFIG) --libs jansson 2>/dev/null),-ljansson)
LBFGS_CFLAGS := $(shell $(PKG_CONFIG) --cflags liblbfgs 2>/dev/null)
LBFGS_LIBS   := $(or $(shell $(PKG_CONFIG) --libs liblbfgs 2>/dev/null),-llbfgs)
LIBS := $(JANSSON_LIBS) $(LBFGS_LIBS) -lpthread -ldl -lm
BASE_FLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread \
    -Iinclude -Ilibmoedisco $(JANSSON_CFLAGS) $(LBFGS_CFLAGS) $(WARNINGS)
FLAGS = $(BASE_FLAGS) $(OF_OBJECT) $(CPPFLAGS) $(CFLAGS) $(SANITIZE)
FLAG_HASH := $(shell printf '%s' '$(CC) $(FLAGS) $(LDFLAGS)' | cksum | cut -d' ' -f1)
BUILD ?= build
OUT := $(BUILD)/$(FLAG_HASH)

# ---- sources ----
SOURCES := $(sort $(wildcard libmoedisco/*/*.c libmoedisco/backend/cpu/*.c))
OBJECTS := $(SOURCES:%.c=$(OUT)/%.o)
# CPU operations are compiled once per variant: the reference for two dtypes, the fast ones per instruction set.
CPU := libmoedisco/backend/cpu
REFERENCE_VARIANTS := f32 f64
FAST_VARIANTS := $(if $(filter x86_64,$(ARCH)),v2 v3 v4,$(if $(filter aarch64,$(ARCH)),neon))
FAST_FLAGS := -O3 -ffp-contract=fast -fno-trapping-math
VARIANT_FLAGS_f32  := -DMOEDI_VARIANT=f32 -DMOEDI_REAL=float
VARIANT_FLAGS_f64  := -DMOEDI_VARIANT=f64 -DMOEDI_REAL=double
VARIANT_FLAGS_v2   := -DMOEDI_VARIANT=v2 -march=x86-64-v2 $(FAST_FLAGS)
VARIANT_FLAGS_v3   := -DMOEDI_VARIANT=v3 -march=x86-64-v3 $(FAST_FLAGS)
VARIANT_FLAGS_v4   := -DMOEDI_VARIANT=v4 -march=x86-64-v4 -mprefer-vector-width=512 $(FAST_FLAGS)
VARIANT_FLAGS_neon := -DMOEDI_VARIANT=neon $(FAST_FLAGS)

comma := ,
# ---- CUDA: the plug-in libmoedisco-cuda.so, where a CUDA toolkit is found or asked for (CUDA=1), unless CUDA=0 ----
NVCC ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA ?= $(if $(NVCC),1,0)
CUDA_ARCHS ?= 80 86 89 90a 100 120
ifeq ($(CUDA),1)
ifeq ($(NVCC),)
$(error CUDA=1, but there is no nvcc on PATH or in /usr/local/cuda/bin: give NVCC=/path/to/nvcc, or CUDA=0 for the CPU alone)
endif
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(NVCC))
# cuDNN is loaded at run time; its headers, where they are installed, let attention be compiled for it. Kernels of one chip (*_sm90.cu)
# are compiled for it alone. What is not there, or not asked for, is stood in for by *_absent.cu.
CUDNN := $(firstword $(wildcard $(CUDA_HOME)/include/cudnn.h /usr/local/include/cudnn.h /usr/include/cudnn.h /usr/include/*/cudnn.h))
CUDA_LEFT_OUT := $(if $(filter 90a,$(CUDA_ARCHS)),%/grouped_absent.cu %/kmeans_assign_absent.cu,%_sm90.cu) $(if $(CUDNN),%/attention_absent.cu)
CUDA_SOURCES := $(sort $(filter-out $(CUDA_LEFT_OUT),$(wildcard libmoedisco/backend/cuda/*/*.cu)) \
    $(if $(CUDNN),$(wildcard libmoedisco/backend/cuda/*/*.cpp)))
CUDA_NEWEST  := $(lastword $(CUDA_ARCHS))
CUDA_CODE := $(foreach a,$(CUDA_ARCHS),-gencode=arch=compute_$(a)$(comma)code=sm_$(a)) \
    $(if $(filter-out %a,$(CUDA_NEWEST)),-gencode=arch=compute_$(CUDA_NEWEST)$(comma)code=compute_$(CUDA_NEWEST))
CUDA_FLAGS = -std=c++17 -O3 -lineinfo $(CUDA_CODE) -Iinclude -Ilibmoedisco $(if $(CUDNN),-DMOEDI_CUDNN -I$(dir $(CUDNN))) \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall$(if $(WERROR),$(comma)-Werror)
CUDA_OUT := $(BUILD)/cuda-$(shell printf '%s' '$(NVCC) $(CUDA_FLAGS)' | cksum | cut -d' ' -f1)
CUDA_OBJECTS := $(addprefix $(CUDA_OUT)/,$(addsuffix .o,$(basename $(CUDA_SOURCES))))
# Headers that kernels are written with come as wheels, fetched once and known by their hashes.
FETCHED := $(BUILD)/fetch
CUDNN_FRONTEND := $(FETCHED)/nvidia-cudnn-frontend-1.32.0
CUTLASS := $(FETCHED)/nvidia-cutlass-4.2.0.0
CUDA_PLUGIN := $(OUT)/moedisco-backends/libmoedisco-cuda.so
CUDA_BENCHES := $(patsubst %.cu,$(CUDA_OUT)/%,$(wildcard tests/bench/*.cu))
endif
SONAME   := libmoedisco.so.$(SOVERSION)
SHARED   := $(OUT)/libmoedisco.so
STATIC   := $(OUT)/libmoedisco.a
INTERNAL := $(OUT)/libmoedisco-internal.a
COMMAND  := $(OUT)/moedisco
TOKENIZE := $(OUT)/moedisco-tokenize
COMMAND_SOURCES := $(sort $(wildcard examples/moedisco/*.c))
EXAMPLES := $(patsubst examples/%.c,$(OUT)/examples/%,$(sort $(wildcard examples/[0-9]*.c)))
TESTS    := $(patsubst tests/%.c,$(OUT)/tests/%,$(sort $(wildcard tests/test_*.c)))
SCRIPTS  := tests/headers.sh tests/sources.sh tests/abi.sh tests/install.sh $(sort $(wildcard tests/check_*.sh))
# On the command line by name alone, TESTS='util trainer' SCRIPTS=check_law; an empty list is none.
override TESTS   := $(foreach t,$(TESTS),$(if $(findstring /,$(t)),$(t),$(OUT)/tests/test_$(patsubst test_%,%,$(t))))
override SCRIPTS := $(foreach s,$(SCRIPTS),$(if $(findstring /,$(s)),$(s),tests/$(patsubst %.sh,%,$(s)).sh))
BENCHES  := $(patsubst tests/bench/%.c,$(OUT)/tests/bench/%,$(sort $(wildcard tests/bench/*.c)))

# What runs on any machine, and is what the tests are of; `all` has the plug-in too.
host: $(SHARED) $(STATIC) $(if $(COMMAND_SOURCES),$(COMMAND) $(TOKENIZE)) $(EXAMPLES)
	$(Q)ln -sfn $(FLAG_HASH) $(BUILD)/current
all: host $(CUDA_PLUGIN)
	@echo '$(if $(CUDA_PLUGIN),CUDA: the plug-in is built by $(NVCC) for $(CUDA_ARCHS) (CUDA=0 leaves it out),CUDA: no plug-in ($(if $(NVCC),CUDA=0 was given,no nvcc was found; CUDA=1 NVCC=/path/to/nvcc builds it)))'

help:
	@printf '%s\n' 'all              libraries, command, examples, and the CUDA plug-in where nvcc is found (CUDA=0|1, CUDA_ARCHS); host: without it' \
	    'demo             three ways of training at equal money, on text of this machine' \
	    'check            all tests; check-run the same, installing nothing (ci: .ci/run)' \
	    'check-abi        exported symbols; fields of structs    check-headers  as C99 and C++11' \
	    'check-install    programs outside the tree, DESTDIR     check-gpu      operations on a GPU' \
	    'asan ubsan tsan  all tests with a sanitizer (a part of check-run too: TESTS="util trainer" SCRIPTS=)' \
	    'valgrind         quick tests under memcheck' \
	    'analyze tidy     gcc -fanalyzer, clang-tidy over all sources' \
	    'ci-full          check, asan, ubsan, tsan, valgrind, analyze and tidy in turn' \
	    'crash            200 runs killed at random instants, and every fault in turn' \
	    'fuzz             each target in tests/fuzz for FUZZ_SECONDS (600); fuzz-merge keeps what is new' \
	    'bench            the bench programs                     bench-methods  the methods against each other' \
	    'bench-gpu        on a GPU, beside PyTorch (PEERS, ROWS) check-gpu CHECK=sanitize   under compute-sanitizer' \
	    'gpu-pack DIR=    both for a machine with a GPU and without this tree' \
	    'install uninstall dist clean' \
	    'variables: CC CXX CFLAGS CPPFLAGS LDFLAGS PREFIX LIBDIR INCLUDEDIR BINDIR DESTDIR BUILD SANITIZE FUZZ_SECONDS' \
	    '           V=1 (commands)  WERROR=1 (warnings are errors)  YES=1 (install packages without asking)'

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(FLAGS) -MMD -MP -c -o $@ $<
# Where installed plug-ins lie is known to one object alone: installing somewhere else builds that one anew.
LOADER := $(OUT)/libmoedisco/backend/loader.o
LIBDIR_STAMP := $(OUT)/libdir-$(shell printf '%s' '$(LIBDIR)' | cksum | cut -d' ' -f1)
$(LOADER) $(LOADER:.o=.tidy): private OF_OBJECT := -DMOEDI_LIBDIR='"$(LIBDIR)"'
$(LOADER): $(LIBDIR_STAMP)
$(LIBDIR_STAMP):
	@mkdir -p $(@D) && rm -f $(OUT)/libdir-* && touch $@
# $(1) folder, $(2) variant
define variant
OBJECTS += $(patsubst $(CPU)/$(1)/%.c,$(OUT)/$(CPU)/$(1)/%.$(2).o,$(wildcard $(CPU)/$(1)/*.c))
$(OUT)/$(CPU)/$(1)/%.$(2).o: $(CPU)/$(1)/%.c
	@mkdir -p $$(@D)
	$$(call say,CC,'$$< ($(2))')$$(CC) $$(FLAGS) $$(VARIANT_FLAGS_$(2)) -MMD -MP -c -o $$@ $$<
endef
$(foreach v,$(REFERENCE_VARIANTS),$(eval $(call variant,reference,$(v))))
$(foreach v,$(FAST_VARIANTS),$(eval $(call variant,fast,$(v))))

# Loops over numbers, once more per instruction set: without contraction, so that all give the same bits.
VECTOR := libmoedisco/util/vector
define vector
OBJECTS += $(patsubst $(VECTOR)/%.c,$(OUT)/$(VECTOR)/%.$(1).o,$(wildcard $(VECTOR)/*.c))
$(OUT)/$(VECTOR)/%.$(1).o: $(VECTOR)/%.c
	@mkdir -p $$(@D)
	$$(call say,CC,'$$< ($(1))')$$(CC) $$(FLAGS) $(or $(VARIANT_FLAGS_$(1)),-DMOEDI_VARIANT=$(1) -O3 -fno-trapping-math) \
	    -ffp-contract=off -MMD -MP -c -o $$@ $$<
endef
$(foreach v,plain $(filter-out neon,$(FAST_VARIANTS)),$(eval $(call vector,$(v))))

$(SHARED): $(OBJECTS) libmoedisco/moedisco.map
	$(call say,LD,$@)$(CC) $(FLAGS) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=libmoedisco/moedisco.map \
	    -Wl,-z,defs -Wl,-z,relro -Wl,-z,now $(LDFLAGS) -o $@ $(OBJECTS) $(LIBS)
	$(Q)ln -sf libmoedisco.so $(OUT)/$(SONAME)
# The static library is one object whose internal names are local to it: only moed_ names remain.
$(STATIC): $(OBJECTS)
	$(call say,AR,$@)$(CC) -r -nostdlib -o $(OUT)/moedisco.o $(OBJECTS) && \
	    $(OBJCOPY) --wildcard --keep-global-symbol='moed_*' $(OUT)/moedisco.o && rm -f $@ && $(AR) rcs $@ $(OUT)/moedisco.o
$(INTERNAL): $(OBJECTS)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

ifeq ($(CUDA),1)
# $(1) package, $(2) version, $(3) SHA-256 of its wheel, $(4) options that choose the wheel: of one with headers alone, any platform's will do
define fetched
$(FETCHED)/$(1)-$(2):
	@mkdir -p $$@.wheel
	$$(call say,FETCH,'$(1) $(2)')echo '$(1)==$(2) --hash=sha256:$(3)' >$$@.wheel/hash && \
	    python3 -m pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: $(4) -d $$@.wheel -r $$@.wheel/hash && \
	    python3 -m zipfile -e $$@.wheel/*.whl $$@.part && mv $$@.part $$@ || { echo 'make: $(1) $(2) did not come: it takes the network' \
	    'and pip (sh .ci/packages cuda brings it). CUDA=0 leaves the plug-in out.' >&2; exit 1; }
endef
$(eval $(call fetched,nvidia-cudnn-frontend,1.32.0,c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0,--python-version \
    3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64))
$(eval $(call fetched,nvidia-cutlass,4.2.0.0,f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6))
$(filter %_sm90.o,$(CUDA_OBJECTS)): CUDA_CODE := -gencode=arch=compute_90a$(comma)code=sm_90a --expt-relaxed-constexpr \
    -isystem $(CUTLASS)/cutlass_library/source/include
$(filter %_sm90.o,$(CUDA_OBJECTS)): | $(CUTLASS)
# Numbers that must have the host's bits: no product and sum become one.
$(CUDA_OUT)/libmoedisco/backend/cuda/common/blend.o: CUDA_CODE += -fmad=false
# Templates over descriptors, called a few times a step: what -O1 leaves undone costs nothing, and halves the time to compile.
$(CUDA_OUT)/%.o: %.cpp | $(CUDNN_FRONTEND)
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) -std=c++17 -O1 -g -fPIC -fvisibility=hidden -Wall -Wextra $(if $(WERROR),-Werror) -DMOEDI_CUDNN -Iinclude -Ilibmoedisco \
	    -isystem $(CUDNN_FRONTEND)/include -isystem $(dir $(CUDNN)) -isystem $(CUDA_HOME)/include -MMD -MP -c -o $@ $<
$(CUDA_OUT)/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(CUDA_FLAGS) -MMD -MP -c -o $@ $<
# Objects of other CUDA_ARCHS may be older than the plug-in that stands here: a stamp tells whose it is.
CUDA_STAMP := $(OUT)/$(notdir $(CUDA_OUT)).stamp
$(CUDA_STAMP):
	@mkdir -p $(@D) && rm -f $(OUT)/cuda-*.stamp && touch $@
$(CUDA_PLUGIN): $(CUDA_OBJECTS) $(CUDA_STAMP) libmoedisco/backend/cuda/plugin.map
	@mkdir -p $(@D)
	$(call say,LD,$@)$(NVCC) -shared -cudart static -o $@ $(CUDA_OBJECTS) -ldl -lpthread -Xlinker -rpath,$(CUDA_HOME)/lib64 -Xlinker -z,defs,-z,relro,-z,now,--version-script=libmoedisco/backend/cuda/plugin.map
$(CUDA_BENCHES): %: %.o $(CUDA_OBJECTS)
	$(call say,LD,$@)$(NVCC) -cudart static -o $@ $^ -ldl -lpthread
endif
GPU_TESTS   := $(patsubst %.c,$(OUT)/%,$(wildcard tests/gpu/test_*.c))
GPU_BENCHES := $(patsubst %,$(OUT)/tests/bench/%,bench_device bench_step bench_kmeans bench_pieces)
bench-gpu: all $(GPU_BENCHES)
	@sh tests/bench/gpu.sh $(abspath $(OUT)) $(ROWS)
# For a machine with a GPU and without this tree.
gpu-pack: all $(OUT)/tests/test_conformance $(GPU_TESTS) $(GPU_BENCHES) $(CUDA_BENCHES) $(OUT)/tests/bench/plugins/libmoedisco-timed.so
	@sh tests/gpu/pack.sh $(abspath $(OUT)) '$(DIR)' $(abspath $(GPU_BENCHES) $(CUDA_BENCHES))

$(COMMAND): $(COMMAND_SOURCES:%.c=$(OUT)/%.o) $(SHARED)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) -L$(OUT) -lmoedisco $(LIBS) \
	    -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib'
$(TOKENIZE): examples/moedisco/moedisco-tokenize
	$(Q)install -D -m 755 $< $@
$(OUT)/examples/%: examples/%.c $(SHARED)
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -MMD -MP -o $@ $< -L$(OUT) -lmoedisco -lm -Wl,-rpath,'$$ORIGIN/..'

# ---- tests ----
CMOCKA_LIBS = $(or $(shell $(PKG_CONFIG) --libs cmocka 2>/dev/null),-lcmocka)
PLUGINS := $(patsubst tests/plugins/%.c,$(OUT)/tests/plugins/%/libmoedisco-test.so,$(wildcard tests/plugins/*.c))
$(OUT)/tests/%: tests/%.c $(INTERNAL)
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(FLAGS) -Itests $(LDFLAGS) -DMOEDI_TEST_OUT='"$(abspath $(OUT))"' -DMOEDI_TEST_SOURCE='"$(abspath .)"' \
	    -MMD -MP -o $@ $< $(INTERNAL) $(CMOCKA_LIBS) $(LIBS)
TIMED := $(OUT)/tests/bench/plugins/libmoedisco-timed.so
$(TIMED): tests/bench/plugins/timed.c
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -shared -Wl,-z,defs -MMD -MP -o $@ $< -ldl
# Preloaded into the command: without a sanitizer, which wants to be first.
FAULTS := $(OUT)/tests/faults/libfaults.so
CRASH  := $(OUT)/tests/crash/crash
$(FAULTS): tests/faults/faults.c tests/faults/faults.h
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(BASE_FLAGS) $(CFLAGS) -fvisibility=default -DFAULTS_PRELOADED -shared -o $@ $<
# A plug-in stands alone: the fake one brings the CPU's operations along.
$(OUT)/tests/plugins/%/libmoedisco-test.so: tests/plugins/%.c $(INTERNAL)
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -shared -Wl,-z,defs -MMD -MP -o $@ $< $(filter $(OUT)/$(CPU)/%,$(OBJECTS)) \
	    $(OUT)/libmoedisco/core/limits.o -lm -ldl

-include $(shell find $(wildcard $(OUT) $(CUDA_OUT)) -name '*.d' 2>/dev/null)

# ---- the two commands of the README: each brings what it needs ----
demo:
	@sh .ci/packages build
	@$(MAKE) --no-print-directory demo-run
demo-run: host
	@sh examples/demo.sh $(abspath $(COMMAND))
check:
	@sh .ci/packages build check
	@$(MAKE) --no-print-directory check-run
# The bench programs are built too, so that they cannot rot: three seconds of two cores.
check-run: host $(TESTS) $(BENCHES) $(PLUGINS) $(CRASH) $(FAULTS)
	@OUT='$(abspath $(OUT))' CC='$(CC)' CXX='$(CXX)' MAKE='$(MAKE)' sh tests/run.sh $(TESTS) $(SCRIPTS)
# Every kill and every fault, some of an hour; `check` has a few seconds of it.
crash:
	@sh .ci/packages build check
	@$(MAKE) --no-print-directory crash-run
crash-run: host $(CRASH) $(FAULTS) $(OUT)/tests/test_faults
	@$(OUT)/tests/test_faults full
	@$(CRASH) $(abspath $(COMMAND)) $(abspath $(FAULTS)) full
check-abi: $(SHARED) $(STATIC)
	@OUT='$(abspath $(OUT))' sh tests/abi.sh
check-headers:
	@CC='$(CC)' CXX='$(CXX)' sh tests/headers.sh
check-install: host
	@OUT='$(abspath $(OUT))' CC='$(CC)' CXX='$(CXX)' MAKE='$(MAKE)' sh tests/install.sh
check-gpu: all $(OUT)/tests/test_conformance $(GPU_TESTS)
	@OUT='$(abspath $(OUT))' sh tests/gpu/check.sh $(CHECK)
bench: host $(BENCHES) $(TIMED)
	@sh tests/bench/run.sh $(abspath $(OUT))/tests/bench
bench-methods: host
	@sh tests/bench/methods.sh $(abspath $(COMMAND))
FLAGS_asan  := CFLAGS='-O1 -g -fno-omit-frame-pointer' SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all'
FLAGS_ubsan := CFLAGS='-O1 -g' SANITIZE='-fsanitize=undefined -fno-sanitize-recover=all'
FLAGS_tsan  := CFLAGS='-O1 -g' SANITIZE='-fsanitize=thread'
asan ubsan tsan:
	@sh .ci/packages build check
	@$(MAKE) --no-print-directory check-run $(FLAGS_$@)

# Memcheck knows no AVX-512: the library then chooses its v3 kernels by itself. Left out are tests that take seconds without
# it, and test_core, whose fake device tells host memory by where the kernel puts it; valgrind puts it elsewhere.
VALGRIND_TESTS := corpus device fuzz kmeans layout model partition pieces schedule threads util
VALGRIND := valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,indirect --fair-sched=yes
valgrind:
	@sh .ci/packages build check tools
	@$(MAKE) --no-print-directory valgrind-run CFLAGS='-O1 -g'
valgrind-run: host $(VALGRIND_TESTS:%=$(OUT)/tests/test_%) $(PLUGINS)
	@OUT='$(abspath $(OUT))' RUN='$(VALGRIND)' sh tests/run.sh $(VALGRIND_TESTS:%=$(OUT)/tests/test_%)

# Both see one file at a time; MOEDI_ANALYZE tells them what status.h promises. The CPU's operations in one variant each.
# gcc 12 takes the number of a vector's lanes for the width of a shift in each: that check is off, UBSan makes it at run time.
ANALYZE_FLAGS := CPPFLAGS=-DMOEDI_ANALYZE WERROR=1 REFERENCE_VARIANTS=f32 \
    FAST_VARIANTS=$(or $(filter v3,$(FAST_VARIANTS)),$(FAST_VARIANTS))
analyze:
	@sh .ci/packages build
	@$(MAKE) --no-print-directory -k analyze-run $(ANALYZE_FLAGS) CC=gcc CFLAGS='-O1 -fanalyzer -Wno-analyzer-shift-count-overflow'
analyze-run: $(OBJECTS) $(COMMAND_SOURCES:%.c=$(OUT)/%.o)
TIDY_SOURCES := $(SOURCES) $(wildcard $(CPU)/reference/*.c $(CPU)/fast/*.c examples/*.c) $(COMMAND_SOURCES)
TIDY_HEADERS := $(shell find libmoedisco include examples -name '*.h')
TIDY := $(TIDY_SOURCES:%.c=$(OUT)/%.tidy)
tidy:
	@sh .ci/packages build tools
	@$(MAKE) --no-print-directory -k tidy-run $(ANALYZE_FLAGS) CFLAGS=-O1
tidy-run: $(TIDY)
$(OUT)/$(CPU)/reference/%.tidy: TIDY_VARIANT = $(VARIANT_FLAGS_f32)
$(OUT)/$(CPU)/fast/%.tidy: TIDY_VARIANT = $(VARIANT_FLAGS_$(FAST_VARIANTS))
$(OUT)/%.tidy: %.c .ci/clang-tidy $(TIDY_HEADERS)
	@mkdir -p $(@D)
	$(call say,TIDY,$<)clang-tidy-14 --config-file=.ci/clang-tidy --quiet $< -- $(FLAGS) $(TIDY_VARIANT) 2>$@.log && touch $@

ci-full:
	@sh .ci/packages build check tools
	@for target in check-run asan ubsan tsan valgrind analyze tidy; do \
	    echo "== $$target"; $(MAKE) --no-print-directory $$target || exit 1; done

# ---- fuzzing: clang's libFuzzer over tests/fuzz/*.c; what `make check` replays lies in tests/fuzz/corpus ----
FUZZERS := $(patsubst tests/fuzz/%.c,$(OUT)/tests/fuzz/%,$(sort $(wildcard tests/fuzz/*.c)))
FUZZ_SECONDS ?= 600
FUZZ_FLAGS := CC=clang CFLAGS='-O1 -g' SANITIZE='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' \
    LDFLAGS=-fsanitize=fuzzer
fuzz fuzz-merge:
	@sh .ci/packages build check fuzz
	@$(MAKE) --no-print-directory $@-run $(FUZZ_FLAGS)
fuzz-run: $(FUZZERS)
	@OUT='$(abspath $(OUT))' sh tests/fuzz/run.sh fuzz '$(FUZZ_SECONDS)' $(FUZZERS)
fuzz-merge-run: $(FUZZERS)
	@OUT='$(abspath $(OUT))' sh tests/fuzz/run.sh merge 0 $(FUZZERS)
fuzz-build: $(FUZZERS)

# ---- install: places may have blanks in their names ----
TO_LIB = "$(DESTDIR)$(LIBDIR)"
TO_INCLUDE = "$(DESTDIR)$(INCLUDEDIR)"
TO_BIN = "$(DESTDIR)$(BINDIR)"
install: all
	install -d $(TO_LIB)/pkgconfig $(TO_INCLUDE)/moedisco/sys $(TO_BIN)
	install -m 644 include/moedisco.h $(TO_INCLUDE)/
	install -m 644 include/moedisco/*.h $(TO_INCLUDE)/moedisco/
	install -m 644 include/moedisco/sys/*.h $(TO_INCLUDE)/moedisco/sys/
	install -m 755 $(SHARED) $(TO_LIB)/libmoedisco.so.$(VERSION)
	ln -sf libmoedisco.so.$(VERSION) $(TO_LIB)/$(SONAME)
	ln -sf $(SONAME) $(TO_LIB)/libmoedisco.so
	install -m 644 $(STATIC) $(TO_LIB)/
	install -m 755 $(COMMAND) $(TOKENIZE) $(TO_BIN)/
	$(if $(CUDA_PLUGIN),install -d $(TO_LIB)/moedisco-backends && install -m 755 $(CUDA_PLUGIN) $(TO_LIB)/moedisco-backends/)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' \
	    pkgconfig/moedisco.pc.in > $(TO_LIB)/pkgconfig/moedisco.pc
uninstall:
	rm -f $(TO_LIB)/libmoedisco.so* $(TO_LIB)/libmoedisco.a $(TO_LIB)/pkgconfig/moedisco.pc $(TO_INCLUDE)/moedisco.h \
	    $(TO_BIN)/moedisco $(TO_BIN)/moedisco-tokenize
	rm -rf $(TO_INCLUDE)/moedisco $(TO_LIB)/moedisco-backends
dist:
	git archive --prefix=libmoedisco-$(VERSION)/ -o libmoedisco-$(VERSION).tar.gz HEAD
clean:
	rm -rf $(BUILD)
