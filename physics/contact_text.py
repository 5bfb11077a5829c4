"""What ``ContactProbe`` reads off a solved MuJoCo world, in C++."""

from __future__ import annotations

from residual_mbrl.physics.mujoco_native import Arguments

ENGINE = ("mj_forwardSkip", "mj_jac", "mj_contactForce", "mj_solveM")
"""Functions of the engine that are called."""
ROWS = {"present": (bool, ()), "gap": (float, ()), "position": (float, (3,)), "frame": (float, (3, 3)), "jacobian": (float, (3, "nv")),
        "response": (float, (3, "nv")), "velocity": (float, (3,)), "force": (float, (3,)), "torque": (float, (3,)),
        "friction": (float, (5,)), "geoms": (int, (2,))}
"""Kind and shape of what is written for each contact."""
ARGUMENTS = (*ENGINE, "most", *ROWS, "missed")

_LOOK = """
struct Functions {
  static double* at(long long array, long long size, long long row) { return (double*)array + size * row; }

  // the contacts with the smallest gaps, most of them at most, in order
  static void look(const mjModel* m, mjData* d, int world, void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    int nv = m->nv, most = (int)a->most, kept = 0;
    ((void (*)(const mjModel*, mjData*, int, int))a->mj_forwardSkip)(m, d, mjSTAGE_NONE, 1);
    int* order = (int*)__builtin_alloca(sizeof(int) * (most + 1));
    for (int i = 0; i < d->ncon; ++i) {
      int place = kept < most ? kept++ : most;
      for (; place > 0 && d->contact[order[place - 1]].dist > d->contact[i].dist; --place)
        if (place < most) order[place] = order[place - 1];
      if (place < most) order[place] = i;
    }
    ((long long*)a->missed)[world] = d->ncon - kept;
    double* both = (double*)__builtin_alloca(sizeof(double) * 6 * nv);
    for (int j = 0; j < kept; ++j) {
      const mjContact* c = d->contact + order[j];
      long long row = (long long)world * most + j;
      ((bool*)a->present)[row] = true;
      *at(a->gap, 1, row) = c->dist;
      __builtin_memcpy(at(a->position, 3, row), c->pos, 24);
      __builtin_memcpy(at(a->frame, 9, row), c->frame, 72);
      for (int k = 0; k < c->dim - 1; ++k) at(a->friction, 5, row)[k] = c->friction[k];
      for (int side = 0; side < 2; ++side) {
        ((long long*)a->geoms)[2 * row + side] = c->geom[side];
        ((void (*)(const mjModel*, const mjData*, double*, double*, const double*, int))a->mj_jac)(
            m, d, both + side * 3 * nv, 0, c->pos, m->geom_bodyid[c->geom[side]]);
      }
      double wrench[6], *jacobian = at(a->jacobian, 3 * nv, row), *velocity = at(a->velocity, 3, row);
      ((void (*)(const mjModel*, const mjData*, int, double*))a->mj_contactForce)(m, d, order[j], wrench);
      for (int k = 0; k < 3; ++k) { at(a->force, 3, row)[k] = wrench[k]; at(a->torque, 3, row)[k] = wrench[3 + k]; velocity[k] = 0; }
      for (int k = 0; k < 3; ++k)
        for (int i = 0; i < nv; ++i) {
          double s = 0;
          for (int x = 0; x < 3; ++x) s += c->frame[3 * k + x] * (both[(3 + x) * nv + i] - both[x * nv + i]);
          jacobian[k * nv + i] = s;
          velocity[k] += s * d->qvel[i];
        }
      ((void (*)(const mjModel*, mjData*, double*, const double*, int))a->mj_solveM)(m, d, at(a->response, 3 * nv, row), jacobian, 3);
    }
  }
};
"""

TEXT = Arguments.text(ARGUMENTS) + _LOOK
