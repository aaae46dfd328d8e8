/** The ways down by which an overlay can be mounted, each as a record of features that leads to it. */

import { mountOverlay, mountOverlaySync, type OverlayOptions } from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import type { KernelFeatures } from '#lib/features/record.js';
import { mountOverlayWith, mountOverlayWithSync, type OverlayMount } from '#lib/overlay/mount.js';
import { type Feature, hasFeature } from './probes.js';

export interface Way {
  readonly mount: (options: OverlayOptions) => Promise<OverlayMount>;
  readonly mountSync: (options: OverlayOptions) => OverlayMount;
  /** A feature that it needs of the kernel. */
  readonly needs?: Feature;
}

function lacking(what: Partial<KernelFeatures>, needs?: Feature): Way {
  return {
    mount: (options) => mountOverlayWith(options, { ...kernelFeaturesSync(), ...what }),
    mountSync: (options) => mountOverlayWithSync(options, { ...kernelFeaturesSync(), ...what }),
    ...(needs && { needs }),
  };
}

export const ways: Readonly<Record<string, Way>> = {
  'as it comes': { mount: mountOverlay, mountSync: mountOverlaySync },
  'by descriptors': lacking({ lowerdirAppend: false }, 'pathDescriptors'),
  'by readable descriptors': lacking({ lowerdirAppend: false, layerDescriptors: 'readable' }, 'layerDescriptors'),
  'by strings': lacking({ layerDescriptors: false }, 'lowerdirAppend'),
  'by one string': lacking({ fsContext: false, layerDescriptors: false }),
  'by mount(2)': lacking({ mountApi: false }),
};

/** Tells whether this kernel has the way of that name. */
export function isPossible(way: string): boolean {
  const needs = ways[way]?.needs;
  return needs === undefined || hasFeature(needs);
}
