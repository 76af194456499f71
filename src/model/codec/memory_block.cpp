#include "model/codec/memory_block.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

namespace vmoba::model {

at::Tensor join_frames(const at::Tensor& x_NCHW, int64_t batch, int64_t time) {
  if (time == 1) return x_NCHW;
  const int64_t C = x_NCHW.size(1), H = x_NCHW.size(2), W = x_NCHW.size(3);
  const at::Tensor x_TSBCHW = x_NCHW.view({-1, time, batch, C, H, W});
  std::vector<at::Tensor> parts;
  for (int64_t i = 0; i < time; ++i) parts.push_back(x_TSBCHW.select(1, i).reshape({-1, C, H, W}));
  return at::cat(parts, 1);
}

at::Tensor part_frames(const at::Tensor& x_NCHW, int64_t batch, int64_t time) {
  if (time == 1) return x_NCHW;
  const int64_t C = x_NCHW.size(1) / time, H = x_NCHW.size(2), W = x_NCHW.size(3);
  std::vector<at::Tensor> frames;
  for (const at::Tensor& steps_NCHW : x_NCHW.split(batch))
    for (const at::Tensor& frame_BCHW : steps_NCHW.split(C, 1)) frames.push_back(frame_BCHW);
  return at::cat(frames).view({-1, C, H, W});
}

FrameConv::FrameConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out, int64_t kernel,
                     bool with_bias, int64_t stride)
    : weight(source(name + ".weight", {out, in, kernel, kernel}).contiguous(at::MemoryFormat::ChannelsLast)),
      stride(stride) {
  if (with_bias) bias = source(name + ".bias", {out});
}

at::Tensor FrameConv::operator()(const at::Tensor& x_NCHW) const {
  const int64_t padding = weight.size(2) / 2;
  const at::Tensor x = x_NCHW.contiguous(at::MemoryFormat::ChannelsLast);
  // What conv2d takes with several threads; with one it may take another way, whose last bits differ.
  if (x.is_cpu() && x.scalar_type() == at::kFloat && at::hasMKLDNN() && at::globalContext().userEnabledMkldnn())
    return at::mkldnn_convolution(x, weight, bias, {padding, padding}, {stride, stride}, {1, 1}, 1);
  return at::conv2d(x, weight, bias, {stride, stride}, {padding, padding});
}

MemoryBlock::MemoryBlock(const TensorSource& source, const std::string& name, int64_t width)
    : first_(source, name + ".conv.0", 2 * width, width, 3, true),
      second_(source, name + ".conv.2", width, width, 3, true),
      third_(source, name + ".conv.4", width, width, 3, true) {}

at::Tensor MemoryBlock::operator()(const at::Tensor& x_NCHW, int64_t batch, FrameMemory& memory) const {
  at::Tensor& before_BCHW = memory.next();
  const at::Tensor start = before_BCHW.defined() ? before_BCHW : at::zeros_like(x_NCHW.slice(0, 0, batch));
  const at::Tensor past_NCHW = at::cat({start, x_NCHW.slice(0, 0, x_NCHW.size(0) - batch)});
  before_BCHW = last_frames(x_NCHW, batch);
  at::Tensor y = first_(at::cat({x_NCHW, past_NCHW}, 1)).relu_();
  y = second_(y).relu_();
  return third_(y).add_(x_NCHW).relu_();
}

}  // namespace vmoba::model
