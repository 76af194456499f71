#!/usr/bin/env bash
# Builds the FFmpeg libraries that the wheel bundles, under the LGPL: the distribution's own are configured with
# --enable-gpl. The same release and library versions as the distribution's, so that programs built against those run
# with these. H.264 is encoded by OpenH264 and VP9 by libvpx, AV1 decoded by dav1d (all three BSD).
#
#   scripts/package/build_ffmpeg.sh SOURCE_TAR WORK_FOLDER PREFIX
set -euo pipefail
tar=$(realpath "${1:?SOURCE_TAR}") work=${2:?WORK_FOLDER} prefix=${3:?PREFIX}
mkdir -p "$work"
work=$(realpath "$work")
tar -xf "$tar" -C "$work" --strip-components=1
cd "$work"

decoders=h264,hevc,vp8,vp9,libdav1d,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,msmpeg4v2,msmpeg4v3,h263,flv,wmv1,wmv2,wmv3,vc1
decoders+=,theora,prores,dnxhd,dvvideo,v210,mjpeg,mjpegb,rawvideo,ffv1,huffyuv,ffvhuff,utvideo,qtrle,cinepak,svq1,svq3
decoders+=,gif,png,apng,webp,bmp,tiff,jpeg2000,jpegls,ppm,pgm,pgmyuv,pbm,pam,targa,psd,exr,qoi
demuxers=mov,matroska,avi,flv,mpegts,mpegps,mpegvideo,asf,ogg,gif,apng,mxf,dv,ivf,h264,hevc,m4v,mjpeg,obu,av1,rawvideo
demuxers+=,wav,mp3,aac,flac,yuv4mpegpipe,image2,image2pipe,image_bmp_pipe,image_exr_pipe,image_gif_pipe,image_j2k_pipe,image_jpeg_pipe
demuxers+=,image_jpegls_pipe,image_pam_pipe,image_pbm_pipe,image_pgm_pipe,image_png_pipe,image_ppm_pipe,image_psd_pipe
demuxers+=,image_qoi_pipe,image_tiff_pipe,image_webp_pipe
parsers=h264,hevc,vp8,vp9,av1,mpegvideo,mpeg4video,h263,vc1,mjpeg,png,bmp,webp,gif,dnxhd,jpeg2000,pnm

./configure --prefix="$prefix" --disable-gpl --disable-nonfree --disable-version3 --disable-everything \
  --disable-autodetect --disable-programs --disable-doc --disable-network --disable-avdevice --disable-avfilter \
  --disable-postproc --disable-static --enable-shared --enable-pic --enable-zlib \
  --enable-libdav1d --enable-libopenh264 --enable-libvpx \
  --enable-decoder="$decoders" --enable-demuxer="$demuxers" --enable-parser="$parsers" \
  --enable-encoder=libopenh264,libvpx_vp9,gif,ffv1,png,mjpeg \
  --enable-muxer=mp4,mov,webm,matroska,gif,image2 \
  --enable-bsf=vp9_superframe,vp9_superframe_split,av1_frame_merge,h264_mp4toannexb,hevc_mp4toannexb,extract_extradata \
  --enable-protocol=file,pipe >configure.log
grep -q '^#define CONFIG_GPL 0$' config.h
grep -q '^#define FFMPEG_LICENSE "LGPL' config.h
make -j"$(nproc)" >make.log 2>&1 || { tail -n 30 make.log >&2; exit 1; }
make install >>make.log 2>&1
