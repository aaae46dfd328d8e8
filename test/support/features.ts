/**
 * Records of what kernels can do, for what is decided without asking one. Each builds on the newer one, so an option
 * that it lacks is named once.
 */
import type { KernelFeatures, ProbedOption } from '#lib/features/record.js';
import { probedOptions } from '#lib/features/record.js';

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

/** Returns the record of an older kernel: the newer one's without some options and with other changes. */
const older = (newer: KernelFeatures, lacking: ProbedOption[], changes: Partial<KernelFeatures>): KernelFeatures => ({
  ...newer,
  ...changes,
  options: { ...newer.options, ...Object.fromEntries(lacking.map((name) => [name, false])) },
});

/** 6.12: layers by strings, verity and data-only layers on metacopy. */
export const linux612 = older(newest, ['override_creds', 'fsync'], {
  release: '6.12.0',
  layerDescriptors: false,
  openTreeAttr: false,
  mountEvents: false,
});

/** 6.1: the wrapper around mount(2)'s options. */
export const linux61 = older(linux612, ['verity', 'datadir+', 'uuid=null', 'uuid=auto'], {
  release: '6.1.0',
  fsContext: false,
  lowerdirAppend: false,
  mountBeneath: false,
  statmount: false,
  uniqueMountId: false,
});

/** 5.10, without SELinux: before overlays in user namespaces. */
export const linux510 = older(linux61, ['uuid', 'userxattr', 'context'], { release: '5.10.0', mountSetattr: false });
