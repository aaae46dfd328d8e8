/** Records of what kernels can do, for what is decided without asking one. */
import type { KernelFeatures, ProbedOption } from '#lib/features/probe.js';
import { probedOptions } from '#lib/features/probe.js';

/** Every option known, but for those named. */
export function knownOptions(...lacking: ProbedOption[]): KernelFeatures['options'] {
  return Object.fromEntries(
    Object.keys(probedOptions).map((name) => [name, !lacking.includes(name as ProbedOption)]),
  ) as KernelFeatures['options'];
}

/** A kernel that has everything, in the initial user namespace. */
export const newest: KernelFeatures = {
  release: '7.0.0',
  pageSize: 4096,
  userNamespace: false,
  mayMount: true,
  overlay: true,
  mountApi: true,
  fsContext: true,
  lowerdirAppend: true,
  layerDescriptors: 'path',
  options: knownOptions(),
  mountSetattr: true,
  mountBeneath: true,
  statmount: true,
  openTreeAttr: true,
  mountEvents: true,
  uniqueMountId: true,
  defaults: { redirect_dir: false, redirect_always_follow: true, index: false, nfs_export: false, metacopy: false },
};

/** 6.12: layers by strings, verity and data-only layers on metacopy. */
export const linux612: KernelFeatures = {
  ...newest,
  release: '6.12.0',
  layerDescriptors: false,
  options: knownOptions('override_creds', 'fsync'),
  openTreeAttr: false,
  mountEvents: false,
};

/** 6.1: the wrapper around mount(2)'s options. */
export const linux61: KernelFeatures = {
  ...linux612,
  release: '6.1.0',
  fsContext: false,
  lowerdirAppend: false,
  options: knownOptions('override_creds', 'fsync', 'verity', 'datadir+', 'uuid=null', 'uuid=auto'),
  mountBeneath: false,
  statmount: false,
  uniqueMountId: false,
};
