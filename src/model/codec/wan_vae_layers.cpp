#include "model/codec/wan_vae_layers.h"

#include <ATen/ATen.h>

namespace vmoba::model {
namespace {

constexpr int64_t kPastFrames = 2;  // every kernel spans three frames

at::Tensor channels_last(const TensorSource& source, const std::string& name, const std::vector<int64_t>& shape) {
  return source(name, shape)
      .contiguous(shape.size() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast);
}

at::Tensor gamma(const TensorSource& source, const std::string& name, int64_t channels, int64_t dimensions) {
  std::vector<int64_t> shape(size_t(dimensions), 1);
  shape[0] = channels;
  return source(name + ".gamma", shape).view({channels});
}

// A convolution of 1x1 or 1x1x1 positions: a matrix product.
Linear pointwise(const TensorSource& source, const std::string& name, int64_t in, int64_t out, int64_t dimensions) {
  std::vector<int64_t> shape(size_t(dimensions), 1);
  shape[0] = out;
  shape[1] = in;
  const at::Tensor weight = source(name + ".weight", shape);
  return {weight.view({out, in}), source(name + ".bias", {out})};
}

// A chunk behind the frames before it, in one piece.
struct Joined {
  at::Tensor all;  // [past + T, H, W, C]
  at::Tensor now;  // its last T frames, to be written
};

Joined join_past(const at::Tensor& past, int64_t past_frames, at::IntArrayRef chunk, const at::TensorOptions& options) {
  Joined joined;
  std::vector<int64_t> shape = chunk.vec();
  shape[0] += past_frames;
  joined.all = at::empty(shape, options);
  const at::Tensor head = joined.all.slice(0, 0, past_frames);
  past.defined() ? head.copy_(past) : head.zero_();
  joined.now = joined.all.slice(0, past_frames);
  return joined;
}

// Pictures [T, H, W, C] through a 2D convolution.
at::Tensor convolve_frames(const at::Tensor& x_THWC, const at::Tensor& weight, const at::Tensor& bias, int64_t stride,
                           int64_t padding) {
  const at::Tensor out_TCHW = at::conv2d(x_THWC.permute({0, 3, 1, 2}), weight, bias, stride, padding);
  return out_TCHW.permute({0, 2, 3, 1}).contiguous();
}

at::Tensor convolve_video(const at::Tensor& x_THWC, const at::Tensor& weight, const at::Tensor& bias,
                          at::IntArrayRef stride, at::IntArrayRef padding) {
  const at::Tensor x_1CTHW = x_THWC.permute({3, 0, 1, 2}).unsqueeze(0);
  return at::conv3d(x_1CTHW, weight, bias, stride, padding).squeeze(0).permute({1, 2, 3, 0}).contiguous();
}

// Frames [T, F, H, W, C] -> [T*F, 2H, 2W, C], each value four times.
at::Tensor repeat_positions(const at::Tensor& x_TFHWC) {
  const int64_t frames = x_TFHWC.size(0) * x_TFHWC.size(1), height = x_TFHWC.size(2), width = x_TFHWC.size(3);
  return x_TFHWC.unsqueeze(4)
      .unsqueeze(3)
      .expand({-1, -1, -1, 2, -1, 2, -1})
      .reshape({frames, 2 * height, 2 * width, x_TFHWC.size(4)});
}

}  // namespace

CausalConv::CausalConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out,
                       int64_t spatial_kernel)
    : weight_(channels_last(source, name + ".weight", {out, in, kPastFrames + 1, spatial_kernel, spatial_kernel})),
      bias_(source(name + ".bias", {out})) {}

at::Tensor CausalConv::run(const at::Tensor& joined_THWC) const {
  const int64_t padding = weight_.size(4) / 2;
  return convolve_video(joined_THWC, weight_, bias_, {1, 1, 1}, {0, padding, padding});
}

at::Tensor CausalConv::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  at::Tensor& past = memory.next();
  const Joined joined = join_past(past, kPastFrames, x_THWC.sizes(), x_THWC.options());
  joined.now.copy_(x_THWC);
  past = last_frames(joined.all, kPastFrames);
  return run(joined.all);
}

at::Tensor CausalConv::after_norm(const at::Tensor& x_THWC, const at::Tensor& gamma_C, FrameMemory& memory) const {
  at::Tensor& past = memory.next();
  Joined joined = join_past(past, kPastFrames, x_THWC.sizes(), x_THWC.options());
  at::silu_out(joined.now, rms_norm_channels(x_THWC, gamma_C));
  past = last_frames(joined.all, kPastFrames);
  return run(joined.all);
}

VaeResBlock::VaeResBlock(const TensorSource& source, const std::string& name, int64_t in, int64_t out)
    : gamma1_C_(gamma(source, name + ".norm1", in, 4)),
      gamma2_C_(gamma(source, name + ".norm2", out, 4)),
      conv1_(source, name + ".conv1", in, out, 3),
      conv2_(source, name + ".conv2", out, out, 3) {
  if (in != out) shortcut_ = pointwise(source, name + ".conv_shortcut", in, out, 5);
}

at::Tensor VaeResBlock::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const at::Tensor h_THWC = conv1_.after_norm(x_THWC, gamma1_C_, memory);
  const at::Tensor out_THWC = conv2_.after_norm(h_THWC, gamma2_C_, memory);
  return out_THWC.add_(shortcut_ ? linear(x_THWC, *shortcut_) : x_THWC);
}

VaeMiddle::VaeMiddle(const TensorSource& source, const std::string& name, int64_t width)
    : before_(source, name + ".resnets.0", width, width),
      after_(source, name + ".resnets.1", width, width),
      gamma_C_(gamma(source, name + ".attentions.0.norm", width, 3)),
      to_qkv_(pointwise(source, name + ".attentions.0.to_qkv", width, 3 * width, 4)),
      proj_(pointwise(source, name + ".attentions.0.proj", width, width, 4)) {}

at::Tensor VaeMiddle::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const at::Tensor h_THWC = before_(x_THWC, memory);
  // [T, 1 head, positions, 3C]
  const at::Tensor qkv = linear(rms_norm_channels(h_THWC, gamma_C_), to_qkv_).flatten(1, 2).unsqueeze(1);
  const std::vector<at::Tensor> parts = qkv.chunk(3, -1);
  const at::Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
  return after_(linear(mixed.reshape(h_THWC.sizes()), proj_).add_(h_THWC), memory);
}

VaeDownsample::VaeDownsample(const TensorSource& source, const std::string& name, int64_t width, bool temporal)
    : weight_(channels_last(source, name + ".resample.1.weight", {width, width, 3, 3})),
      bias_(source(name + ".resample.1.bias", {width})) {
  if (!temporal) return;
  time_weight_ = channels_last(source, name + ".time_conv.weight", {width, width, 3, 1, 1});
  time_bias_ = source(name + ".time_conv.bias", {width});
}

at::Tensor VaeDownsample::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  // One row and one column of zeros at the far ends only.
  const at::Tensor padded = at::constant_pad_nd(x_THWC, {0, 0, 0, 1, 0, 1});
  at::Tensor halved = convolve_frames(padded, weight_, bias_, /*stride=*/2, /*padding=*/0);
  if (!time_weight_.defined()) return halved;
  at::Tensor& past = memory.next();
  const at::Tensor before = past;
  past = last_frames(halved, 1);
  if (memory.first_chunk()) return halved;
  return convolve_video(at::cat({before, halved}), time_weight_, time_bias_, {2, 1, 1}, {0, 0, 0});
}

VaeUpsample::VaeUpsample(const TensorSource& source, const std::string& name, int64_t in, int64_t out, bool temporal)
    : weight_(channels_last(source, name + ".resample.1.weight", {out, in, 3, 3})),
      bias_(source(name + ".resample.1.bias", {out})) {
  if (temporal) time_conv_.emplace(source, name + ".time_conv", in, 2 * in, 1);
}

at::Tensor VaeUpsample::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  at::Tensor x_TFHWC = x_THWC.unsqueeze(1);
  if (time_conv_ && memory.first_chunk()) {
    memory.next();  // the first frame stays one and is not remembered
  } else if (time_conv_) {
    x_TFHWC = (*time_conv_)(x_THWC, memory).unflatten(-1, {2, -1}).permute({0, 3, 1, 2, 4});
  }
  return convolve_frames(repeat_positions(x_TFHWC), weight_, bias_, /*stride=*/1, /*padding=*/1);
}

at::Tensor mean_shortcut(const at::Tensor& x_THWC, int64_t out, int64_t time, int64_t space) {
  const int64_t missing = (time - x_THWC.size(0) % time) % time;
  const at::Tensor x = missing == 0 ? x_THWC : at::constant_pad_nd(x_THWC, {0, 0, 0, 0, 0, 0, missing, 0});
  const int64_t frames = x.size(0) / time, height = x.size(1) / space, width = x.size(2) / space;
  return x.view({frames, time, height, space, width, space, x.size(3)})
      .permute({0, 2, 4, 6, 1, 3, 5})
      .reshape({frames, height, width, out, -1})
      .mean(-1);
}

at::Tensor repeat_shortcut(const at::Tensor& x_THWC, int64_t out, int64_t time, int64_t space, bool first_chunk) {
  const int64_t frames = x_THWC.size(0), height = x_THWC.size(1), width = x_THWC.size(2), channels = x_THWC.size(3);
  const int64_t repeats = out * time * space * space / channels;
  const at::Tensor copies = x_THWC.unsqueeze(-1)
                                .expand({-1, -1, -1, -1, repeats})
                                .reshape({frames, height, width, out, time, space, space})
                                .permute({0, 4, 1, 5, 2, 6, 3});
  const at::Tensor kept = first_chunk ? copies.slice(1, time - 1) : copies;
  return kept.reshape({-1, height * space, width * space, out});
}

}  // namespace vmoba::model
