// Somebody else's trainer, in C++: split and integrate of its own arrays, of an architecture that this library never heard of
// (fused QKV, stacked experts). It makes submodels by pieces in memory of its own, "trains" them, and checks every number
// that comes back.
#include <moedisco.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void check(moed_status status, const char *what)
{
    if (status == MOED_OK) return;
    std::fprintf(stderr, "%s: %s\n", what, moed_last_error());
    std::exit(1);
}
static void expect(bool truth, const char *what)
{
    if (truth) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
}
#define CHECK(call) check(call, #call)
#define EXPECT(condition) expect(condition, #condition)

enum { EXPERTS = 4, WIDTH = 8, INNER = 6 };

// A model of the trainer's own: one vector per parameter of a layout.
struct Arrays {
    std::vector<std::vector<float> > data;
    std::vector<moed_tensor> tensors;
    std::vector<moed_param> params;
    int released;

    explicit Arrays(const moed_layout *layout) : released(0)
    {
        moed_layout_info info;
        info.struct_size = sizeof info;
        CHECK(moed_layout_get_info(layout, &info));
        data.resize(static_cast<size_t>(info.params));
        for (size_t i = 0; i < data.size(); i++) {
            moed_param p;
            moed_tensor t = moed_tensor();
            int64_t count = 1;
            CHECK(moed_layout_param(layout, i, &p));
            t.dtype = p.dtype, t.rank = p.rank;
            for (int32_t a = p.rank; a-- > 0;) t.shape[a] = p.shape[a], t.strides[a] = count, count *= p.shape[a];
            data[i].resize(static_cast<size_t>(count));
            t.data = data[i].data();
            tensors.push_back(t);
            params.push_back(p);
        }
    }
    static void release(void *self) { static_cast<Arrays *>(self)->released++; }
    moed_model *borrow(moed_context *c, const moed_layout *layout)
    {
        moed_model *m = nullptr;
        CHECK(moed_model_borrow(&m, c, layout, tensors.data(), tensors.size(), release, this));
        return m;
    }
};

static moed_param parameter(const char *name, int32_t role, int32_t layer, int32_t axis, std::vector<int64_t> shape)
{
    moed_param p = moed_param();
    p.name = name, p.role = role, p.layer = layer, p.expert = -1, p.expert_axis = axis, p.dtype = MOED_DTYPE_F32;
    p.rank = static_cast<int32_t>(shape.size());
    for (size_t a = 0; a < shape.size(); a++) p.shape[a] = shape[a];
    return p;
}

int main()
{
    moed_context *context = nullptr;
    moed_layout *layout = nullptr;
    moed_split *split = nullptr;
    moed_integration *integration = nullptr;
    CHECK(moed_context_create(&context, nullptr));
    const moed_param params[] = {parameter("wte", MOED_ROLE_SHARED, -1, -1, {32, WIDTH}),
                                 parameter("h.0.attn.qkv", MOED_ROLE_SHARED, 0, -1, {3 * WIDTH, WIDTH}),
                                 parameter("h.0.moe.gate", MOED_ROLE_ROUTER, 0, 0, {EXPERTS, WIDTH}),
                                 parameter("h.0.moe.up", MOED_ROLE_EXPERT, 0, 1, {WIDTH, EXPERTS, INNER}),
                                 parameter("h.0.moe.down", MOED_ROLE_EXPERT, 0, 0, {EXPERTS, INNER, WIDTH})};
    CHECK(moed_layout_create(&layout, context, params, sizeof params / sizeof params[0]));

    Arrays base(layout);
    for (size_t i = 0; i < base.data.size(); i++)
        for (size_t n = 0; n < base.data[i].size(); n++) base.data[i][n] = std::sin(static_cast<float>(31 * i + n));
    moed_model *base_model = base.borrow(context, layout);
    CHECK(moed_split_create(&split, layout, nullptr));
    CHECK(moed_integration_create(&integration, split, base_model, nullptr));

    // four submodels by pieces, each perturbed by k + 1 in the shared part and by 10 (k + 1) in its expert
    std::vector<Arrays *> parts;
    for (int32_t k = 0; k < EXPERTS; k++) {
        const moed_layout *own = moed_split_layout(split, k);
        EXPECT(own != nullptr);
        parts.push_back(new Arrays(own));
        for (size_t i = 0; i < parts[static_cast<size_t>(k)]->tensors.size(); i++) {
            moed_piece pieces[8];
            size_t count = 0;
            const moed_tensor *sources[] = {base.tensors.data()};
            Arrays &part = *parts[static_cast<size_t>(k)];
            CHECK(moed_split_pieces(split, k, i, pieces, 8, &count));
            CHECK(moed_piece_apply(context, pieces, count, sources, &part.tensors[i], nullptr));
            const float step = static_cast<float>(k + 1) * (part.params[i].role == MOED_ROLE_SHARED ? 1.0f : 10.0f);
            for (size_t n = 0; n < part.data[i].size(); n++) part.data[i][n] += step;
        }
        moed_model *m = parts[static_cast<size_t>(k)]->borrow(context, own);
        CHECK(moed_integration_add(integration, k, m, 1.0));
        moed_model_destroy(m);
        EXPECT(parts[static_cast<size_t>(k)]->released == 0);
    }
    EXPECT(moed_integration_add(integration, 0, base_model, 1.0) == MOED_E_EXISTS);

    moed_model *whole = nullptr;
    CHECK(moed_integration_finish(&whole, integration, nullptr, nullptr));
    for (size_t i = 0; i < base.data.size(); i++) {
        moed_tensor t;
        CHECK(moed_model_tensor(whole, i, &t));
        const float *x = static_cast<const float *>(t.data);
        for (size_t n = 0; n < base.data[i].size(); n++) {
            const float was = base.data[i][n];
            const size_t expert = i == 3 ? n / INNER % EXPERTS : n / (INNER * WIDTH);
            if (params[i].role == MOED_ROLE_SHARED) EXPECT(std::fabs(x[n] - (was + 2.5f)) < 1e-5f); // the mean of 1, 2, 3, 4
            if (params[i].role == MOED_ROLE_ROUTER) EXPECT(x[n] == was);
            if (params[i].role == MOED_ROLE_EXPERT) EXPECT(x[n] == was + 10.0f * static_cast<float>(expert + 1));
        }
    }

    // the same by pieces, into memory of the trainer's own
    Arrays own(layout);
    std::vector<const moed_tensor *> sources(1, base.tensors.data());
    for (size_t k = 0; k < parts.size(); k++) sources.push_back(parts[k]->tensors.data());
    for (size_t i = 0; i < own.data.size(); i++) {
        moed_piece pieces[16];
        size_t count = 0;
        moed_tensor t;
        CHECK(moed_integration_pieces(integration, i, pieces, 16, &count));
        EXPECT(count <= 16);
        CHECK(moed_piece_apply(context, pieces, count, sources.data(), &own.tensors[i], nullptr));
        CHECK(moed_model_tensor(whole, i, &t));
        EXPECT(std::memcmp(own.data[i].data(), t.data, own.data[i].size() * sizeof(float)) == 0);
    }

    // every handle goes, in no particular order; then, and once, the arrays come back
    moed_layout_destroy(layout);
    moed_model_destroy(base_model);
    moed_context_destroy(context);
    moed_split_destroy(split);
    EXPECT(base.released == 0);
    moed_integration_destroy(integration);
    EXPECT(base.released == 1);
    for (size_t k = 0; k < parts.size(); k++) {
        EXPECT(parts[k]->released == 1);
        delete parts[k];
    }
    moed_model_destroy(whole);
    return 0;
}
