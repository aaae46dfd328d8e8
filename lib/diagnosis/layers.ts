/** Rules about relations of layers: overlaps, uses by other overlays, the layers with which an upperdir was made. */
import * as e from '../errnos.js';
import type { StepFailure } from '../kernel/perform.js';
import { goesByDescriptors, type Path, pathString, quotePath } from '../paths.js';
import { member, type Text, text } from '../text.js';
import { identityOf, isInside, type OtherUse, type PathFacts } from './facts.js';
import {
  type Cause,
  findRole,
  findSubject,
  isCreation,
  isLayer,
  isLower,
  nameOf,
  type Rule,
  type Scene,
  show,
} from './rule.js';

const pair = (one: PathFacts, other: PathFacts) => ({
  path: pathString(one.subject.path),
  dest: pathString(other.subject.path),
});

/** The upperdir and the workdir do not fit each other. */
const upperAndWork: Rule = {
  when: (failure) => isCreation(failure) && failure.errno === e.EINVAL,
  find({ options, facts }) {
    const upper = findRole(facts, 'upperdir');
    const work = findRole(facts, 'workdir');
    if (upper === undefined || work === undefined) return undefined;
    const [u, w] = [nameOf(upper.subject, options), nameOf(work.subject, options)];
    const [upperId, workId] = [identityOf(upper.found), identityOf(work.found)];
    if (upperId === undefined || workId === undefined) return undefined;
    const paths = pair(work, upper);
    if (upperId === workId)
      return { reason: 'work-inside-upper', what: `${u} and ${w} are the same directory`, ...paths };
    if (isInside(workId, upperId, facts.parents)) {
      return { reason: 'work-inside-upper', what: `${w} is inside ${u}`, ...paths };
    }
    if (isInside(upperId, workId, facts.parents)) {
      return { reason: 'work-inside-upper', what: `${u} is inside ${w}`, ...paths };
    }
    if (upper.found.device !== work.found.device) {
      return { reason: 'work-on-other-mount', what: `${w} is on another file system than ${u}`, ...paths };
    }
    if (upper.found.mountId !== work.found.mountId) {
      return {
        reason: 'work-on-other-mount',
        what: `${w} is on the same file system as ${u}, but on another mount`,
        ...paths,
      };
    }
    return undefined;
  },
  foresees: true,
};

/**
 * Finds a lower layer that is the same directory as another layer, is inside one, or has the upperdir or workdir inside.
 * The kernel accepts the last, and answers ELOOP when a walk of the overlay comes to that directory.
 */
function findOverlap({ options, facts }: Scene): Cause | undefined {
  const byIdentity = new Map<string, PathFacts>();
  const layers = facts.paths.filter(isLayer);
  for (const layer of layers) {
    const identity = identityOf(layer.found);
    if (identity === undefined) continue;
    const other = byIdentity.get(identity);
    if (other !== undefined && (isLower(other) || isLower(layer))) {
      const what = `${nameOf(layer.subject, options)} and ${nameOf(other.subject, options)} are the same directory`;
      return { reason: 'layer-twice', what, ...pair(layer, other) };
    }
    byIdentity.set(identity, layer);
  }
  for (const layer of layers) {
    const identity = identityOf(layer.found);
    if (identity === undefined) continue;
    const seen = new Set<string>();
    for (let at = facts.parents.get(identity); at !== undefined && !seen.has(at); at = facts.parents.get(at)) {
      const outer = byIdentity.get(at);
      if (outer !== undefined && (isLower(layer) || isLower(outer))) {
        const what = `${nameOf(layer.subject, options)} is inside ${nameOf(outer.subject, options)}`;
        return { reason: 'layers-overlap', what, ...(isLower(layer) ? {} : BESIDE), ...pair(layer, outer) };
      }
      seen.add(at);
    }
  }
  return undefined;
}

const BESIDE = { hint: 'put the upperdir and the workdir beside the lower layer, not inside it' };

const refusesOverlap = (failure: StepFailure): boolean =>
  failure.guard === 'layers-overlap' || (isCreation(failure) && failure.errno === e.ELOOP);

const overlap: Rule = { when: refusesOverlap, find: findOverlap, foresees: true };

const overlapUnseen: Rule = {
  when: refusesOverlap,
  find(scene) {
    const lower = findSubject(scene);
    if (lower === undefined) {
      const what =
        'two layers are the same directory, or one is inside another, through a mount that shows it at another path';
      return { reason: 'layers-overlap', what };
    }
    const what = `the upperdir or the workdir is inside ${nameOf(lower.subject, scene.options)}, through a mount that shows it at another path`;
    return { reason: 'layers-overlap', what, ...BESIDE, path: pathString(lower.subject.path) };
  },
};

const useReasons = {
  upperdir: 'upper-in-use',
  workdir: 'work-in-use',
  lowerdir: 'lower-in-use',
  datadir: 'lower-in-use',
} as const;

/** Describes another overlay, and how to end it. */
function otherOverlay({ target, isPending }: OtherUse): [which: string, end: Text] {
  if (isPending) return ['an overlay that another call is mounting', 'wait for that call'];
  if (target === undefined) {
    return [
      'an overlay that still exists, although this mount namespace does not show it',
      'end what keeps it: an open file, a program, a clone or bind of it, or another mount namespace',
    ];
  }
  const shown = quotePath(target);
  // The library never names another process's mount by a descriptor.
  return goesByDescriptors(target)
    ? [`the detached overlay ${shown}`, text`unmount it by its ${member('unmount')}`]
    : [`the overlay at ${shown}`, `unmount ${shown}`];
}

/** Another overlay that the library knows uses a layer. */
const used: Rule = {
  when: ({ errno, guard }) => errno === e.EBUSY || guard === 'directory-is-in-use',
  find({ options, facts, failure }) {
    // An upperdir or workdir in use tells more than a lower layer. The kernel refuses a lower layer that is another
    // overlay's upperdir only with an index.
    const order = ['upperdir', 'workdir', 'lowerdir', 'datadir'];
    const hasIndex = options.overlay.some(({ kernel, value }) => kernel === 'index' && value === 'on');
    const minded = hasIndex || failure !== undefined ? order : options.exclusive ? order.slice(0, 2) : [];
    const [use] = facts.otherUses
      .filter(({ subject }) => minded.includes(subject.role))
      .sort((a, b) => order.indexOf(a.subject.role) - order.indexOf(b.subject.role));
    if (use === undefined) return undefined;
    const { role } = use.subject;
    const [which, end] = otherOverlay(use);
    return {
      reason: useReasons[role as keyof typeof useReasons],
      what: `${nameOf(use.subject, options)} is in use as the ${use.as} of ${which}`,
      hint: text`${end}, or use ${role === 'lowerdir' || role === 'datadir' ? 'another lower layer' : 'other directories'}`,
      path: pathString(use.subject.path),
      ...(use.target !== undefined && { dest: pathString(use.target) }),
    };
  },
  foresees: true,
};

/** The kernel reports that a layer is in use, and no overlay that uses it could be identified. */
const usedElsewhere: Rule = {
  when: (failure) => failure.errno === e.EBUSY && isCreation(failure),
  find({ options, facts: { use } }) {
    const { upperdir, workdir, lowerdir } = options;
    if (use.work === true && use.upper === false && workdir !== undefined) {
      const what = `the workdir ${quotePath(workdir)} is in use ${elsewhere}`;
      return { reason: 'work-in-use', what, path: pathString(workdir) };
    }
    if (upperdir !== undefined && use.upper !== false) {
      const what = `the upperdir ${quotePath(upperdir)}${use.upper === true ? '' : ' or its workdir'} is in use ${elsewhere}`;
      return { reason: 'upper-in-use', what, path: pathString(upperdir) };
    }
    return {
      reason: 'lower-in-use',
      what: `one of ${lowerdir.length} lower layers is the upperdir or workdir of an overlay, or is inside one; the kernel does not say which`,
    };
  },
};

const elsewhere = 'by an overlay that still exists, although this mount namespace does not show it';

/** The guard has found a directory in use. Its user could not be identified, or the directory is free by now. */
const reserved: Rule = {
  when: ({ guard }) => guard === 'directory-is-in-use',
  find({ options, failure }) {
    const role = failure?.step?.options.subject?.role === 'workdir' ? 'workdir' : 'upperdir';
    const path = options[role] as Path;
    return {
      reason: useReasons[role],
      what: `the ${role} ${quotePath(path)} is in use by an overlay that another call was mounting, or that still exists although this mount namespace does not show it`,
      path: pathString(path),
    };
  },
};

/** The index or the upperdir was made with other layers. */
const stale: Rule = {
  when: (failure) => isCreation(failure) && failure.errno === e.ESTALE,
  find({ options, facts: { origin } }) {
    const { upperdir, workdir, lowerdir } = options;
    if (upperdir === undefined || workdir === undefined) return undefined;
    const [u, w] = [quotePath(upperdir), quotePath(workdir)];
    if (origin.isIndexOfUpper === false && origin.isOfLower !== false) {
      const other = origin.indexUpper === undefined ? 'another upperdir' : `the upperdir ${show(origin.indexUpper)}`;
      return {
        reason: 'index-of-other-upper',
        what: `the index in the workdir ${w} was made with ${other}, not with ${u}`,
        path: pathString(workdir),
        dest: pathString(origin.indexUpper ?? upperdir),
      };
    }
    const lower = quotePath(lowerdir[0] ?? '');
    const made = origin.lower === undefined ? 'other layers' : `another lowerdir, ${show(origin.lower)}`;
    return {
      reason: 'stale',
      what: `the upperdir ${u} was made with ${made}, not with ${lower}${origin.isOfLower === undefined ? ', or its index is no longer valid' : ''}`,
      path: pathString(upperdir),
      ...(origin.lower !== undefined && { dest: pathString(origin.lower) }),
    };
  },
};

export const layerRules: readonly Rule[] = [upperAndWork, overlap, overlapUnseen, used, reserved, usedElsewhere, stale];
