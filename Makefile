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
.PHONY: all help demo check check-run check-abi check-headers check-install check-gpu bench bench-methods asan ubsan tsan install uninstall dist clean demo-run
.DELETE_ON_ERROR:

# ---- flags; objects lie in a directory named by them ----
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings -Wvla -Wformat=2 $(if $(WERROR),-Werror)
JANSSON_CFLAGS := $(shell $(PKG_CONFIG) --cflags jansson 2>/dev/null)
JANSSON_LIBS   := $(or $(shell $(PKG_CONFIG) --libs jansson 2>/dev/null),-ljansson)
LIBS := $(JANSSON_LIBS) -lpthread -ldl -lm
BASE_FLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread \
    -Iinclude -Ilibmoedisco $(JANSSON_CFLAGS) -DMOEDI_LIBDIR='"$(LIBDIR)"' $(WARNINGS)
FLAGS = $(BASE_FLAGS) $(CPPFLAGS) $(CFLAGS) $(SANITIZE)
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

SONAME   := libmoedisco.so.$(SOVERSION)
SHARED   := $(OUT)/libmoedisco.so
STATIC   := $(OUT)/libmoedisco.a
INTERNAL := $(OUT)/libmoedisco-internal.a
COMMAND  := $(OUT)/moedisco
COMMAND_SOURCES := $(sort $(wildcard examples/moedisco/*.c))
EXAMPLES := $(patsubst examples/%.c,$(OUT)/examples/%,$(sort $(wildcard examples/[0-9]*.c)))
TESTS    := $(patsubst tests/%.c,$(OUT)/tests/%,$(sort $(wildcard tests/test_*.c)))
BENCHES  := $(patsubst tests/bench/%.c,$(OUT)/tests/bench/%,$(sort $(wildcard tests/bench/*.c)))

all: $(SHARED) $(STATIC) $(if $(COMMAND_SOURCES),$(COMMAND)) $(EXAMPLES)
	$(Q)ln -sfn $(FLAG_HASH) $(BUILD)/current

help:
	@echo 'all demo check check-abi check-headers check-install bench bench-methods asan ubsan tsan install uninstall dist clean'
	@echo 'variables: CC CFLAGS LDFLAGS PREFIX LIBDIR INCLUDEDIR BINDIR DESTDIR V=1 WERROR=1 YES=1 (install packages without asking)'

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(FLAGS) -MMD -MP -c -o $@ $<
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
	$$(call say,CC,'$$< ($(1))')$$(CC) $$(FLAGS) $(or $(VARIANT_FLAGS_$(1)),-DMOEDI_VARIANT=$(1) -O3 -fno-trapping-math) -ffp-contract=off -MMD -MP -c -o $$@ $$<
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

$(COMMAND): $(COMMAND_SOURCES:%.c=$(OUT)/%.o) $(SHARED)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) -L$(OUT) -lmoedisco $(LIBS) \
	    -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib'
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
# A plug-in stands alone: the fake one brings the CPU's operations along.
$(OUT)/tests/plugins/%/libmoedisco-test.so: tests/plugins/%.c $(INTERNAL)
	@mkdir -p $(@D)
	$(call say,LD,$@)$(CC) $(FLAGS) $(LDFLAGS) -shared -Wl,-z,defs -MMD -MP -o $@ $< $(filter $(OUT)/$(CPU)/%,$(OBJECTS)) -lm -ldl

-include $(shell [ -d $(OUT) ] && find $(OUT) -name '*.d')

# ---- the two commands of the README: each brings what it needs ----
demo:
	@sh .ci/packages build
	@$(MAKE) --no-print-directory demo-run
demo-run: all
	@sh examples/demo.sh $(abspath $(COMMAND))
check:
	@sh .ci/packages build check
	@$(MAKE) --no-print-directory check-run
check-run: all $(TESTS) $(PLUGINS)
	@OUT='$(abspath $(OUT))' CC='$(CC)' CXX='$(CXX)' MAKE='$(MAKE)' sh tests/run.sh $(TESTS)
check-abi: $(SHARED) $(STATIC)
	@OUT='$(abspath $(OUT))' sh tests/abi.sh
check-headers:
	@CC='$(CC)' CXX='$(CXX)' sh tests/headers.sh
check-install: all
	@OUT='$(abspath $(OUT))' CC='$(CC)' CXX='$(CXX)' MAKE='$(MAKE)' sh tests/install.sh
check-gpu:
	@echo 'no GPU backend is built in this version: nothing to check'; exit 2
bench: all $(BENCHES)
	@sh tests/bench/run.sh $(abspath $(OUT))/tests/bench
bench-methods: all
	@sh tests/bench/methods.sh $(abspath $(COMMAND))
asan:
	@$(MAKE) --no-print-directory check-run CFLAGS='-O1 -g -fno-omit-frame-pointer' SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all'
ubsan:
	@$(MAKE) --no-print-directory check-run CFLAGS='-O1 -g' SANITIZE='-fsanitize=undefined -fno-sanitize-recover=all'
tsan:
	@$(MAKE) --no-print-directory check-run CFLAGS='-O1 -g' SANITIZE='-fsanitize=thread'

# ---- install ----
PC = $(DESTDIR)$(LIBDIR)/pkgconfig/moedisco.pc
install: all
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)/moedisco/sys $(DESTDIR)$(BINDIR)
	install -m 644 include/moedisco.h $(DESTDIR)$(INCLUDEDIR)/
	install -m 644 include/moedisco/*.h $(DESTDIR)$(INCLUDEDIR)/moedisco/
	install -m 644 include/moedisco/sys/*.h $(DESTDIR)$(INCLUDEDIR)/moedisco/sys/
	install -m 755 $(SHARED) $(DESTDIR)$(LIBDIR)/libmoedisco.so.$(VERSION)
	ln -sf libmoedisco.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libmoedisco.so
	install -m 644 $(STATIC) $(DESTDIR)$(LIBDIR)/
	install -m 755 $(COMMAND) $(DESTDIR)$(BINDIR)/
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' \
	    pkgconfig/moedisco.pc.in > $(PC)
uninstall:
	rm -f $(DESTDIR)$(LIBDIR)/libmoedisco.so* $(DESTDIR)$(LIBDIR)/libmoedisco.a $(PC) $(DESTDIR)$(INCLUDEDIR)/moedisco.h $(DESTDIR)$(BINDIR)/moedisco
	rm -rf $(DESTDIR)$(INCLUDEDIR)/moedisco
dist:
	git archive --prefix=libmoedisco-$(VERSION)/ -o libmoedisco-$(VERSION).tar.gz HEAD
clean:
	rm -rf $(BUILD)
