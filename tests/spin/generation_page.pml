/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The generation page: kvmid, a hypervisor and a reader, in every order in which their single loads and stores can
 * happen. What is proved of it: docs/decisions/0007-sequence-lock.md. Run by check_model.py.
 *
 * RAM is two halves in two pages with a word each. A change writes its generation into both, one after the other.
 * Loads and stores take effect in program order here (sequential consistency); that the orders in the C++ sources are
 * enough for that on weaker machines is argued in the decision, not here.
 *
 * Claims: a read that is accepted holds two halves of one change, and no patch; a write whose cookie kvmid accepts is
 * based on the latest state, and on the memory map that kvmid knows.
 *
 * Each PLANT_* breaks one rule, and check_model.py wants every one of them found.
 */
#ifndef CHANGES
#define CHANGES 2
#endif

#define POISON 255 /* the bytes of a patch */
#define is_changing(w) (((w) & 1) != 0)
#define is_patched(w) (((w) & 2) != 0)

mtype = { WRITE, PATCH, UNPATCH };

/* Shared memory. */
byte word[2];
byte generation = 1;
byte map_sequence;
byte ram[2] = 1;
bool real_map; /* what RAM means: the hypervisor's memory map */

/* Sockets. */
chan to_hypervisor = [3] of { mtype, byte };
chan done = [3] of { mtype };
chan map_changed = [1] of { bool };
chan cookie_write = [0] of { byte, byte, bool };

bool reader_gone;

inline mark() {
  word[0] = word[0] + 1;
  word[1] = word[1] + 1
}

active proctype kvmid() {
  xs to_hypervisor; /* nobody else does: fewer orders to look at */
  xr done;
  xr map_changed;
  byte current = 1;     /* core::Generations */
  byte last_change = 1; /* of both pages */
  byte map_floor = 1;
  byte state = 1;       /* what RAM holds when everything that was sent is done */
  bool known_map;
  byte begun;
  byte under_way;
  byte patch;           /* 0 none yet, 1 sent, 2 there, 3 being taken off, 4 gone */
  byte cookie;
  byte based_on;
  bool based_on_map;

  do
  :: begun < CHANGES && under_way < 2 ->
    atomic { begun++; current++; last_change = current; state = current; under_way++ }
#ifdef PLANT_PUBLISH_FIRST
    generation = current;
#endif
#ifndef PLANT_LATE_MARK
    if
    :: under_way == 1 -> mark()
    :: else
    fi;
#endif
    generation = current;
    to_hypervisor ! WRITE, current;
#ifdef PLANT_LATE_MARK
    if
    :: under_way == 1 -> mark()
    :: else
    fi
#endif

  :: done ? WRITE ->
#ifdef PLANT_NO_COUNT
    if
    :: is_changing(word[0]) -> word[0] = word[0] + 3; word[1] = word[1] + 3
    :: else
    fi;
    under_way--
#else
    under_way--;
    if
    :: under_way == 0 -> word[0] = word[0] + 3; word[1] = word[1] + 3
    :: else
    fi
#endif

  :: patch == 0 ->
    atomic { patch = 1; current++; last_change = current }
#ifdef PLANT_LATE_PATCH
    generation = current;
    to_hypervisor ! PATCH, 0;
    word[0] = word[0] + 2
#else
    word[0] = word[0] + 2;
    generation = current;
    to_hypervisor ! PATCH, 0
#endif
  :: done ? PATCH -> patch = 2
  :: patch == 2 ->
    patch = 3;
    to_hypervisor ! UNPATCH, 0
#ifdef PLANT_EARLY_UNPATCH
    ; word[0] = word[0] + 2
#endif
  :: done ? UNPATCH ->
    atomic { patch = 4; current++; last_change = current }
#ifndef PLANT_EARLY_UNPATCH
    word[0] = word[0] + 2; /* + kWordStep - kWordPatched */
#endif
    generation = current

  :: map_changed ? known_map ->
    atomic { current++; map_floor = current }
    map_sequence++;
    generation = current;
    map_sequence++

  :: cookie_write ? cookie, based_on, based_on_map ->
    /* Check and write are one step. That it changes something is left out: it would be one more change. */
    if
#ifdef PLANT_OFF_BY_ONE
    :: cookie + 1 >= last_change && cookie >= map_floor ->
#elif defined(PLANT_NO_FLOOR)
    :: cookie >= last_change ->
#else
    :: cookie >= last_change && cookie >= map_floor ->
#endif
      assert(cookie <= current);
      assert(based_on == state);
      assert(based_on_map == known_map || based_on_map)
    :: else
    fi

  :: begun == CHANGES && under_way == 0 && patch == 4 && known_map && reader_gone -> break
  od
}

active proctype hypervisor() {
  xr to_hypervisor;
  xs done;
  xs map_changed;
  byte value;
  byte under_patch; /* the guest's own bytes, while a patch is over them */
  byte served;

  do
  :: to_hypervisor ? WRITE, value ->
    if
    :: under_patch != 0 -> under_patch = value
    :: else -> ram[0] = value
    fi;
    ram[1] = value; /* the other half, later */
    served++;
    done ! WRITE
  :: to_hypervisor ? PATCH, value ->
    under_patch = ram[0];
    ram[0] = POISON;
    served++;
    done ! PATCH
  :: to_hypervisor ? UNPATCH, value ->
    ram[0] = under_patch;
    under_patch = 0;
    served++;
    done ! UNPATCH
  :: !real_map ->
    atomic { real_map = true; map_changed ! true }
  :: served == CHANGES + 2 && real_map -> break
  od
}

/* One attempt: it may begin at any time, and the next one knows nothing of it. */
active proctype reader() {
  byte sequence;
  byte cookie;
  byte before[2];
  byte after[2];
  byte copy[2];
  bool map;

  sequence = map_sequence;
  if
  :: (sequence & 1) != 0 -> goto again
  :: else
  fi;
  cookie = generation;
  before[0] = word[0];
  before[1] = word[1];
  if
  :: is_patched(before[0]) || is_patched(before[1]) -> goto again /* asks kvmid */
  :: else
  fi;
  if
  :: is_changing(before[0]) || is_changing(before[1]) -> goto again
  :: else
  fi;
  d_step { map = real_map; copy[0] = ram[0] } /* which memory it is, is no step of the reader */
  copy[1] = ram[1];
  after[0] = word[0];
  after[1] = word[1];
#ifndef PLANT_NO_RECHECK
  if
  :: before[0] + before[1] != after[0] + after[1] -> goto again
  :: else
  fi;
  if
  :: map_sequence != sequence -> goto again
  :: else
  fi;
#endif
#ifdef PLANT_LATE_COOKIE
  cookie = generation;
#endif
  assert(copy[0] == copy[1]);
  assert(copy[0] != POISON);
  cookie_write ! cookie, copy[0], map;
again:
  reader_gone = true
}
