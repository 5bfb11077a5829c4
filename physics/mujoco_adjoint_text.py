"""The adjoint of a MuJoCo step in C++, run on each world in the engine's threads; the mathematics is in ``mujoco_adjoint``.

With y = J mu the adjoint of a row's force f, a parameter of contacts changes the next velocity by ``d (Σ y f) / dθ``, the acceleration a
held. Everything that a contact's parameters do goes through

    f(J a - aref; D, friction),   aref = -B J v - K d r,   r = gap - margin,   D ∝ d / (1 - d),   d = impedance(|r|; solimp),
    K = 1 / (dmax timeconst dampratio)²,   B = 2 / (dmax timeconst);   of negative solref K = -stiffness / dmax², B = -damping / dmax.

With z = S y the slope of ``Σ y f`` by aref (S as in ``mujoco_contact_hessian``):

    by K      -Σ z d r            by B      -Σ z J v            by d      -Σ z K r + (Σ y f - Σ z a / D) / (d (1 - d))

where an adhesion a adds ``a / D`` to aref of the normal row, or its share to each edge.

Friction acts on the rows themselves. With φ its coefficients, pyramidal edges are ``J_n ± φ_j J_j`` and their
``1/D = 2 φ_1² (1 - d) / d · A (1 + φ_1²) / impratio``. Elliptic rows have ``D_j ∝ φ_j² / φ_1²`` where they stick, and where they slide

    Σ y f = P (W / T - y_0),   P = D_0 (jar_0 - T) / (1 + mu²),   T² = Σ (φ_j jar_j)²,   W = Σ φ_j² y_j jar_j,   mu = φ_1 / √impratio.

Each contact's numbers come from its two geoms: friction the larger of both (where they are equal half of the slope belongs to each),
margins added, solref and solimp mixed by ``solmix``; a higher priority takes all but the margin. Contacts of an explicit pair have the
pair's.
"""

from __future__ import annotations

from residual_mbrl.physics.mujoco_native import Arguments

ENGINE = ("mj_forwardSkip", "mj_implicit", "mj_fwdKinematics", "mj_makeM", "mj_collision", "mj_makeConstraint", "mj_transmission",
          "mj_fwdVelocity", "mj_fwdActuation", "mj_integratePos", "mjd_smooth_vel")
"""Functions of the engine that are called; the last one stands in no header, and ``mj_implicit`` where it is not there."""
FIELDS = {"geom_friction": 3, "geom_solref": 2, "geom_solimp": 5, "geom_margin": 1,
          "pair_friction": 5, "pair_solref": 2, "pair_solimp": 5, "pair_margin": 1}
"""Model fields of contacts that are differentiated, and their numbers an element."""
LOOKED_AT = ("actuator_length", "actuator_velocity", "actuator_force", "qfrc_actuator", "actuator_moment", "moment_colind", "moment_rowadr",
             "moment_rownnz")
"""Data of a solved world that can be asked for."""
ARGUMENTS = (*ENGINE, "cotangent", "rows", "mu", "w", "signature", "acceleration", "position", "velocity", "damped", "driven", "passive",
             "real_move", "real_bent_move", *FIELDS, *LOOKED_AT)
"""Entries of the functions' argument: addresses of arrays [worlds, ...], and options."""

_ROWS = """
struct Rows {
  // zones of a row's force: none, -D jar, its friction loss to either side, first row of a cone that slides, further rows of a cone
  enum { NONE, LINEAR, LOSS, LOSS_BACK, CONE, TAKEN };

  typedef double Four __attribute__((ext_vector_type(4), aligned(8)));
  static double dot(const double* a, const double* b, int n) {
    Four sums = 0;
    int i = 0;
    for (; i + 4 <= n; i += 4) sums += *(const Four*)(a + i) * *(const Four*)(b + i);
    double s = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (; i < n; ++i) s += a[i] * b[i];
    return s;
  }
  static void times(const mjModel* m, const mjData* d, const double* x, double* out) {
    for (int r = 0; r < d->nefc; ++r) out[r] = dot(d->efc_J + r * m->nv, x, m->nv);
  }
  static double norm(const double* U, int n) { return __builtin_sqrt(dot(U, U, n)); }

  static void classify(const mjData* d, const double* jar, unsigned char* zone) {
    for (int i = 0; i < d->nefc; ++i) {
      int kind = d->efc_type[i];
      if (kind == mjCNSTR_EQUALITY) zone[i] = LINEAR;
      else if (kind == mjCNSTR_FRICTION_DOF || kind == mjCNSTR_FRICTION_TENDON) {
        double most = d->efc_R[i] * d->efc_frictionloss[i];
        zone[i] = jar[i] <= -most ? LOSS : jar[i] >= most ? LOSS_BACK : LINEAR;
      } else if (kind != mjCNSTR_CONTACT_ELLIPTIC) zone[i] = jar[i] < 0 ? LINEAR : NONE;
      else {
        const mjContact* c = d->contact + d->efc_id[i];
        double U[5], N = jar[i] * c->mu;
        for (int j = 1; j < c->dim; ++j) U[j - 1] = jar[i + j] * c->friction[j - 1];
        double T = norm(U, c->dim - 1);
        bool none = N >= c->mu * T, sticks = c->mu * N + T <= 0;
        for (int j = 0; j < c->dim; ++j) zone[i + j] = none ? NONE : sticks ? LINEAR : j ? TAKEN : CONE;
        i += c->dim - 1;
      }
    }
  }
  static void forces(const mjData* d, const double* jar, const unsigned char* zone, double* f) {
    for (int i = 0; i < d->nefc; ++i) {
      if (zone[i] == NONE) f[i] = 0;
      else if (zone[i] == LINEAR) f[i] = -d->efc_D[i] * jar[i];
      else if (zone[i] == LOSS) f[i] = d->efc_frictionloss[i];
      else if (zone[i] == LOSS_BACK) f[i] = -d->efc_frictionloss[i];
      else if (zone[i] == CONE) {
        const mjContact* c = d->contact + d->efc_id[i];
        double U[5];
        for (int j = 1; j < c->dim; ++j) U[j - 1] = jar[i + j] * c->friction[j - 1];
        double T = norm(U, c->dim - 1), P = d->efc_D[i] * (jar[i] - T) / (1 + c->mu * c->mu);
        f[i] = -P;
        for (int j = 1; j < c->dim; ++j) f[i + j] = P * U[j - 1] * c->friction[j - 1] / T;
      }
    }
  }
  // S of a cone that slides, dim x dim
  static void cone(const mjData* d, const double* jar, int i, double* S) {
    const mjContact* c = d->contact + d->efc_id[i];
    int n = c->dim;
    double U[6], scale[6], mu = c->mu;
    for (int j = 0; j < n; ++j) { scale[j] = j ? c->friction[j - 1] : mu; U[j] = jar[i + j] * scale[j]; }
    double T = norm(U + 1, n - 1), size = d->efc_D[i] / (mu * mu * (1 + mu * mu)), across = mu * (U[0] - mu * T) / T;
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < n; ++k) {
        double tj = U[j] / T, tk = U[k] / T, x = 1;
        if (j && k) x = mu * mu * tj * tk - across * ((j == k) - tj * tk);
        else if (j || k) x = -mu * (j ? tj : tk);
        S[j * n + k] = size * scale[j] * scale[k] * x;
      }
  }
  static void slope(const mjData* d, const double* jar, const unsigned char* zone, const double* y, double* z) {
    for (int i = 0; i < d->nefc; ++i) {
      if (zone[i] == CONE) {
        double S[36];
        int n = d->contact[d->efc_id[i]].dim;
        cone(d, jar, i, S);
        for (int j = 0; j < n; ++j) z[i + j] = dot(S + j * n, y + i, n);
      } else if (zone[i] != TAKEN) z[i] = zone[i] == LINEAR ? d->efc_D[i] * y[i] : 0;
    }
  }
  // adds Jᵀ S J to the lower half of H
  static void curve(const mjModel* m, const mjData* d, const double* jar, const unsigned char* zone, double* H) {
    int nv = m->nv;
    for (int i = 0; i < d->nefc; ++i) {
      if (zone[i] != LINEAR && zone[i] != CONE) continue;
      int n = zone[i] == CONE ? d->contact[d->efc_id[i]].dim : 1;
      double S[36];
      if (n > 1) cone(d, jar, i, S);
      else S[0] = d->efc_D[i];
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < n; ++k) {
          const double *left = d->efc_J + (i + j) * nv, *right = d->efc_J + (i + k) * nv;
          for (int r = 0; r < nv; ++r) {
            double s = S[j * n + k] * left[r];
            if (s == 0) continue;
            double* row = H + r * nv;
            for (int q = 0; q <= r; ++q) row[q] += s * right[q];
          }
        }
    }
  }
};
"""

_CONTACTS = """
struct Contacts {
  struct Out { double *friction, *solref, *solimp, *margin; };

  static double clip(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

  // slopes of Σ y f by the contact's own friction [5], solref [2], solimp [5] and margin [1]
  static void slopes(const mjModel* m, const mjData* d, const mjContact* c, const double* y, const double* z, const double* f,
                     const double* jar, const double* ja, const unsigned char* zone, double* own) {
    int i = c->efc_address, kind = d->efc_type[i], n = kind == mjCNSTR_CONTACT_PYRAMIDAL ? 2 * (c->dim - 1) : c->dim;
    const double* k = d->efc_KBIP + 4 * i;
    double K = k[0], B = k[1], d_ = k[2], r = d->efc_pos[i] - d->efc_margin[i];
    double power = 0, pull = 0, by_K = 0, by_B = 0, by_d = 0, by_margin = 0, by_other_B = 0;
    for (int j = i; j < i + n; ++j) {
      const double* row = d->efc_KBIP + 4 * j;
      bool other = kind == mjCNSTR_CONTACT_ELLIPTIC && j > i && (c->solreffriction[0] || c->solreffriction[1]);
      power += y[j] * f[j];
      if (row[0]) by_K -= z[j] * d_ * r;
      if (other) by_other_B -= z[j] * d->efc_vel[j] * row[1];
      else by_B -= z[j] * d->efc_vel[j];
      by_d -= z[j] * row[0] * r;
      by_margin += z[j] * row[0] * d_;
      bool edge = kind == mjCNSTR_CONTACT_PYRAMIDAL;
      if (edge || j == i) pull += z[j] * d->efc_R[j] * c->adhesion / (edge ? n : 1);
    }
    by_d += (power - pull) / (d_ * (1 - d_));
    own[12] = by_margin - by_d * k[3];
    friction(m, d, c, i, y, f, jar, ja, zone, power - pull, own);
    double tc = c->solref[0], dmax = clip(c->solimp[1], mjMINIMP, mjMAXIMP), by_dmax;
    if (tc > 0) {
      bool held = !(m->opt.disableflags & mjDSBL_REFSAFE) && tc < 2 * m->opt.timestep;
      own[5] = held ? 0 : -(2 * K * by_K + B * by_B) / tc;
      own[6] = -2 * K * by_K / c->solref[1];
    } else {
      own[5] = tc ? by_K * K / tc : 0;
      own[6] = c->solref[1] ? by_B * B / c->solref[1] : 0;
    }
    by_dmax = -(2 * K * by_K + B * by_B + by_other_B) / dmax;
    impedance(c->solimp, r < 0 ? -r : r, by_d, by_dmax, own + 7);
  }
  static void impedance(const double* solimp, double r, double by_d, double by_dmax, double* own) {
    double low = clip(solimp[0], mjMINIMP, mjMAXIMP), high = clip(solimp[1], mjMINIMP, mjMAXIMP), width = solimp[2];
    double mid = clip(solimp[3], mjMINIMP, mjMAXIMP), p = solimp[4] < 1 ? 1 : solimp[4];
    bool free_low = solimp[0] == low, free_high = solimp[1] == high;
    if (width <= 1e-15) {
      own[0] = free_low ? 0.5 * by_d : 0;
      own[1] = free_high ? 0.5 * by_d + by_dmax : 0;
      return;
    }
    double x = r / width, y = 1, slope = 0, by_mid = 0, by_p = 0;
    if (x <= 0) y = 0;
    else if (x < 1 && p == 1) { y = x; slope = 1; }
    else if (x < 1 && x <= mid) {
      y = mid * ::pow(x / mid, p);
      slope = p * y / x;
      by_mid = -(p - 1) * y / mid;
      by_p = y * ::log(x / mid);
    } else if (x < 1) {
      double rest = (1 - mid) * ::pow((1 - x) / (1 - mid), p);
      y = 1 - rest;
      slope = p * rest / (1 - x);
      by_mid = -(p - 1) * rest / (1 - mid);
      by_p = -rest * ::log((1 - x) / (1 - mid));
    }
    double span = by_d * (high - low);
    own[0] = free_low ? by_d * (1 - y) : 0;
    own[1] = free_high ? by_d * y + by_dmax : 0;
    own[2] = -span * slope * x / width;
    own[3] = solimp[3] == mid ? span * by_mid : 0;
    own[4] = solimp[4] >= 1 ? span * by_p : 0;
  }
  static void friction(const mjModel* m, const mjData* d, const mjContact* c, int i, const double* y, const double* f,
                       const double* jar, const double* ja, const unsigned char* zone, double power, double* own) {
    const double* phi = c->friction;
    int n = c->dim - 1;
    if (n == 0) return;
    if (d->efc_type[i] == mjCNSTR_CONTACT_PYRAMIDAL) {
      double B = d->efc_KBIP[4 * i + 1];
      for (int j = 0; j < n; ++j) {
        int e = i + 2 * j;
        double half = 0.5 / phi[j], yt = half * (y[e] - y[e + 1]), at = half * (ja[e] - ja[e + 1]);
        double vt = half * (d->efc_vel[e] - d->efc_vel[e + 1]);
        for (int s = 0; s < 2; ++s) {
          double sign = s ? -1 : 1;
          if (zone[e + s] == Rows::LINEAR) own[j] += sign * (yt * f[e + s] - y[e + s] * d->efc_D[e + s] * (at + B * vt));
        }
      }
      own[0] -= (2 / phi[0] + 2 * phi[0] / (1 + phi[0] * phi[0])) * power;
    } else if (zone[i] == Rows::LINEAR) {
      for (int j = 1; j < n; ++j) {
        double share = 2 * y[i + 1 + j] * f[i + 1 + j];
        own[j] += share / phi[j];
        own[0] -= share / phi[0];
      }
    } else if (zone[i] == Rows::CONE) {
      double mu = c->mu, T = 0, W = 0;
      for (int j = 0; j < n; ++j) {
        double u = phi[j] * jar[i + 1 + j];
        T += u * u;
        W += phi[j] * phi[j] * y[i + 1 + j] * jar[i + 1 + j];
      }
      T = __builtin_sqrt(T);
      double P = d->efc_D[i] * (jar[i] - T) / (1 + mu * mu), along = W / T - y[i];
      for (int j = 0; j < n; ++j) {
        double u = jar[i + 1 + j], by_T = u * u * phi[j] / T, by_P = -d->efc_D[i] / (1 + mu * mu) * by_T;
        if (j == 0) by_P -= P * 2 * mu * mu / ((1 + mu * mu) * phi[0]);
        own[j] += by_P * along - P * W / (T * T) * by_T + 2 * P * y[i + 1 + j] * u * phi[j] / T;
      }
    }
  }
  // how much of a contact's number is geom a's, of numbers of which it is the largest or least
  static double share(double a, double b) { return a > b ? 1 : a < b ? 0 : 0.5; }

  static void spread(const mjModel* m, const mjContact* c, const double* own, Out geoms, Out pairs) {
    static const int part[5] = {0, 0, 1, 2, 2};
    for (int p = 0; p < m->npair; ++p) {
      int a = m->pair_geom1[p], b = m->pair_geom2[p];
      if (!((a == c->geom[0] && b == c->geom[1]) || (b == c->geom[0] && a == c->geom[1]))) continue;
      for (int j = 0; j < 5; ++j) if (pairs.friction) pairs.friction[5 * p + j] += own[j];
      for (int j = 0; j < 2; ++j) if (pairs.solref) pairs.solref[2 * p + j] += own[5 + j];
      for (int j = 0; j < 5; ++j) if (pairs.solimp) pairs.solimp[5 * p + j] += own[7 + j];
      if (pairs.margin) pairs.margin[p] += own[12];
      return;
    }
    int g[2] = {c->geom[0], c->geom[1]};
    int first = m->geom_priority[g[0]] - m->geom_priority[g[1]];
    double s0 = m->geom_solmix[g[0]], s1 = m->geom_solmix[g[1]], mix;
    if (s0 >= 1e-15 && s1 >= 1e-15) mix = s0 / (s0 + s1);
    else mix = s0 < 1e-15 && s1 < 1e-15 ? 0.5 : s0 < 1e-15 ? 0 : 1;
    if (first) mix = first > 0;
    const double *r0 = m->geom_solref + 2 * g[0], *r1 = m->geom_solref + 2 * g[1];
    bool least = !first && (r0[0] <= 0 || r1[0] <= 0);
    for (int side = 0; side < 2; ++side) {
      int a = g[side], b = g[1 - side];
      double weight = side ? 1 - mix : mix;
      for (int j = 0; j < 5 && geoms.friction; ++j) {
        double x = m->geom_friction[3 * a + part[j]], other = m->geom_friction[3 * b + part[j]];
        if (x > mjMINMU) geoms.friction[3 * a + part[j]] += own[j] * (first ? weight : share(x, other));
      }
      for (int j = 0; j < 2 && geoms.solref; ++j)
        geoms.solref[2 * a + j] += own[5 + j] * (least ? share(m->geom_solref[2 * b + j], m->geom_solref[2 * a + j]) : weight);
      for (int j = 0; j < 5 && geoms.solimp; ++j) geoms.solimp[5 * a + j] += own[7 + j] * weight;
      if (geoms.margin) geoms.margin[a] += own[12];
    }
  }
  // y = J mu, z = S y
  static void add(const mjModel* m, const mjData* d, const double* y, const double* z, const double* f, const double* jar,
                  const double* ja, const unsigned char* zone, Out geoms, Out pairs) {
    for (int k = 0; k < d->ncon; ++k) {
      const mjContact* c = d->contact + k;
      if (c->efc_address < 0 || c->geom[0] < 0 || c->geom[1] < 0) continue;
      double own[13] = {0};
      slopes(m, d, c, y, z, f, jar, ja, zone, own);
      spread(m, c, own, geoms, pairs);
    }
  }
};
"""

_FUNCTIONS = """
#define TAKE(n) ((double*)__builtin_alloca(sizeof(double) * (n)))  // the engine's own stack may be no larger than the model needs
struct Functions {
  typedef void (*Model)(const mjModel*, mjData*);

  static void run(long long function, const mjModel* m, mjData* d) { ((Model)function)(m, d); }
  static double* at(long long array, long long size, int world) { return array ? (double*)array + size * world : 0; }

  static void outputs(const Arguments* a, const mjModel* m, int row, Contacts::Out* geoms, Contacts::Out* pairs) {
    int n = m->ngeom, p = m->npair;
    *geoms = {at(a->geom_friction, 3 * n, row), at(a->geom_solref, 2 * n, row), at(a->geom_solimp, 5 * n, row), at(a->geom_margin, n, row)};
    *pairs = {at(a->pair_friction, 5 * p, row), at(a->pair_solref, 2 * p, row), at(a->pair_solimp, 5 * p, row), at(a->pair_margin, p, row)};
  }
  // positive definite A, of which the lower triangle counts, to L with A = Lᵀ L; from the leaves of the tree, so that zeros of M stay zeros
  static void factor(double* A, int n) {
    for (int k = n - 1; k >= 0; --k) {
      double *row = A + k * n, root = __builtin_sqrt(row[k]), scale = 1 / root;
      row[k] = root;
      for (int j = 0; j < k; ++j) row[j] *= scale;
      for (int i = 0; i < k; ++i) {
        double x = row[i];
        if (x == 0) continue;
        double* other = A + i * n;
        for (int j = 0; j <= i; ++j) other[j] -= x * row[j];
      }
    }
  }
  static void solve(const double* L, double* x, int n) {
    for (int i = n - 1; i >= 0; --i) {
      const double* row = L + i * n;
      x[i] /= row[i];
      for (int j = 0; j < i; ++j) x[j] -= row[j] * x[i];
    }
    for (int i = 0; i < n; ++i) x[i] = (x[i] - Rows::dot(L + i * n, x, i)) / L[i * n + i];
  }
  static void inertia_times(const mjModel* m, const mjData* d, const double* x, double* out) {
    for (int i = 0; i < m->nv; ++i) out[i] = 0;
    for (int i = 0; i < m->nv; ++i)
      for (int e = m->M_rowadr[i]; e < m->M_rowadr[i] + m->M_rownnz[i]; ++e) {
        int j = m->M_colind[e];
        out[i] += d->M[e] * x[j];
        if (j != i) out[j] += d->M[e] * x[i];
      }
  }
  static void dense(const mjModel* m, const mjData* d, double* A) {
    int nv = m->nv;
    for (int i = 0; i < nv * nv; ++i) A[i] = 0;
    for (int i = 0; i < nv; ++i)
      for (int e = m->M_rowadr[i]; e < m->M_rowadr[i] + m->M_rownnz[i]; ++e) A[i * nv + m->M_colind[e]] = d->M[e];
  }
  // transposed exponential of a rotation vector, and the exponential's right Jacobian: rows times them, added
  static void turn(const double* angle, const double* x, double* by_turn, double* by_spread) {
    double n2 = Rows::dot(angle, angle, 3), n = __builtin_sqrt(n2), s = 1 - n2 / 6, c = 0.5 - n2 / 24, t = 1.0 / 6 - n2 / 120;
    if (n > 0.03) { s = ::sin(n) / n; c = (1 - ::cos(n)) / n2; t = (1 - s) / n2; }
    else { s += n2 * n2 / 120; c += n2 * n2 / 720; t += n2 * n2 / 5040; }
    double k[3], kk[3];  // x K and x K K, K the matrix of angle x
    k[0] = x[1] * angle[2] - x[2] * angle[1];
    k[1] = x[2] * angle[0] - x[0] * angle[2];
    k[2] = x[0] * angle[1] - x[1] * angle[0];
    kk[0] = k[1] * angle[2] - k[2] * angle[1];
    kk[1] = k[2] * angle[0] - k[0] * angle[2];
    kk[2] = k[0] * angle[1] - k[1] * angle[0];
    for (int i = 0; i < 3; ++i) {
      by_turn[i] = x[i] - s * k[i] + c * kk[i];
      by_spread[i] = x[i] - c * k[i] + t * kk[i];
    }
  }
  struct Held {  // where a world was solved, and how its rows acted there
    const double *acceleration, *rest;
    int nefc, ncon;
    int *type, *id, *geoms;
    double* places;
    unsigned char* zone;
  };
  static bool alike(const mjData* d, const Held& h) {
    if (d->nefc != h.nefc || d->ncon != h.ncon) return false;
    for (int i = 0; i < h.nefc; ++i) if (d->efc_type[i] != h.type[i] || d->efc_id[i] != h.id[i]) return false;
    for (int i = 0; i < h.ncon; ++i) {
      const mjContact* c = d->contact + i;
      double far = 0;
      for (int k = 0; k < 3; ++k) far += (c->pos[k] - h.places[3 * i + k]) * (c->pos[k] - h.places[3 * i + k]);
      if (c->geom[0] != h.geoms[2 * i] || c->geom[1] != h.geoms[2 * i + 1] || far > 1e-12) return false;
    }
    return true;
  }
  // r - M a and M rest, the acceleration and the zones of rows held; whether the rows are those that were solved
  static bool residual(const Arguments* a, const mjModel* m, mjData* d, const Held& h, double* r, double* taken) {
    int nv = m->nv, n = d->nefc;
    inertia_times(m, d, h.acceleration, r);
    if (taken) inertia_times(m, d, h.rest, taken);
    for (int i = 0; i < nv; ++i) r[i] = d->qfrc_passive[i] - d->qfrc_bias[i] + (a->passive ? 0 : d->qfrc_actuator[i]) - r[i];
    if (!n) return !h.nefc;
    double *jar = TAKE(2 * n + n / 8 + 1), *f = jar + n;
    unsigned char* zone = (unsigned char*)(f + n);
    Rows::times(m, d, h.acceleration, jar);
    for (int i = 0; i < n; ++i) jar[i] -= d->efc_aref[i];
    bool same = alike(d, h);
    if (!same) Rows::classify(d, jar, zone);
    Rows::forces(d, jar, same ? h.zone : zone, f);
    for (int i = 0; i < n; ++i)
      if (f[i] != 0) for (int j = 0; j < nv; ++j) r[j] += f[i] * d->efc_J[i * nv + j];
    return same;
  }
  // kinematics, forces and rows of constraints at a state, without a solve
  static void place(const Arguments* a, const mjModel* m, mjData* d, bool constrained, bool actuated) {
    run(a->mj_fwdKinematics, m, d);
    run(a->mj_makeM, m, d);
    if (constrained) { run(a->mj_collision, m, d); run(a->mj_makeConstraint, m, d); }
    if (actuated) run(a->mj_transmission, m, d);
    run(a->mj_fwdVelocity, m, d);
    if (actuated) run(a->mj_fwdActuation, m, d);
  }
  static void copy(long long array, const void* from, long long bytes, int world) {
    if (array) __builtin_memcpy((char*)array + bytes * world, from, bytes);
  }
  static void show(const Arguments* a, const mjModel* m, const mjData* d, int world) {
    copy(a->actuator_length, d->actuator_length, 8 * m->nu, world);
    copy(a->actuator_velocity, d->actuator_velocity, 8 * m->nu, world);
    copy(a->actuator_force, d->actuator_force, 8 * m->nu, world);
    copy(a->qfrc_actuator, d->qfrc_actuator, 8 * m->nv, world);
    copy(a->actuator_moment, d->actuator_moment, 8 * m->nJmom, world);
    copy(a->moment_colind, d->moment_colind, 4 * m->nJmom, world);
    copy(a->moment_rowadr, d->moment_rowadr, 4 * m->nu, world);
    copy(a->moment_rownnz, d->moment_rownnz, 4 * m->nu, world);
  }
  // solves a world and pulls rows of cotangents of the step by Euler's method back; w has room for what an implicit one needs
  static void pull(const mjModel* m, mjData* d, int world, void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    int nv = m->nv, nq = m->nq, rows = (int)a->rows;
    double h = m->opt.timestep;
    ((void (*)(const mjModel*, mjData*, int, int))a->mj_forwardSkip)(m, d, mjSTAGE_NONE, 1);
    show(a, m, d, world);
    int n = d->nefc;
    double *H = TAKE(nv * nv), *damped = a->damped ? TAKE(nv * nv) : 0;
    double *acceleration = TAKE(3 * nv), *rest = acceleration + nv, *qvel = rest + nv;
    double *ja = TAKE(5 * n + 1), *jar = ja + n, *f = jar + n, *y = f + n, *z = y + n;
    unsigned char* zone = (unsigned char*)TAKE(n / 8 + 1);
    for (int i = 0; i < nv; ++i) { acceleration[i] = d->qacc[i]; qvel[i] = d->qvel[i]; rest[i] = 0; }
    dense(m, d, H);
    if (damped) {  // rest: what of the acceleration the integrator's own inertia takes away
      for (int i = 0; i < nv * nv; ++i) damped[i] = H[i];
      dampen(a, m, d, damped);
      factor(damped, nv);
      inertia_times(m, d, acceleration, rest);
      solve(damped, rest, nv);
      for (int i = 0; i < nv; ++i) rest[i] = acceleration[i] - rest[i];
    }
    if (n) {
      Rows::times(m, d, acceleration, ja);
      for (int i = 0; i < n; ++i) jar[i] = ja[i] - d->efc_aref[i];
      Rows::classify(d, jar, zone);
      Rows::forces(d, jar, zone, f);
      Rows::curve(m, d, jar, zone, H);
    }
    sign(a, d, world, zone);
    factor(H, nv);
    for (int k = 0; k < rows; ++k) {
      int row = world * rows + k;
      double *mu = at(a->mu, nv, row), *w = at(a->w, nv, row), *velocity = at(a->velocity, nv, row), *position = at(a->position, nv, row);
      onto_velocity(m, at(a->cotangent, 2 * nv + m->na, row), qvel, acceleration, rest, mu, position);
      for (int i = 0; i < nv; ++i) {
        if (velocity) velocity[i] = mu[i];
        mu[i] *= h;
      }
      if (damped) {
        for (int i = 0; i < nv; ++i) w[i] = mu[i];
        solve(damped, w, nv);
        inertia_times(m, d, w, mu);
      }
      solve(H, mu, nv);
      if (!n) continue;
      Rows::times(m, d, mu, y);
      Rows::slope(d, jar, zone, y, z);
      Contacts::Out geoms, pairs;
      outputs(a, m, row, &geoms, &pairs);
      if (geoms.friction || geoms.solref || geoms.solimp || geoms.margin || pairs.friction || pairs.solref || pairs.solimp || pairs.margin)
        Contacts::add(m, d, y, z, f, jar, ja, zone, geoms, pairs);
      for (int r = 0; r < n && velocity; ++r) {
        double s = z[r] * d->efc_KBIP[4 * r + 1];
        if (s != 0) for (int i = 0; i < nv; ++i) velocity[i] -= s * d->efc_J[r * nv + i];
      }
    }
    double* qpos = TAKE(nq + m->na);
    for (int i = 0; i < nq; ++i) qpos[i] = d->qpos[i];
    for (int i = 0; i < m->na; ++i) qpos[nq + i] = d->act[i];
    if (a->velocity) {
      if (a->mjd_smooth_vel) ((void (*)(const mjModel*, mjData*, int))a->mjd_smooth_vel)(m, d, 1);
      else run(a->mj_implicit, m, d);  // leaves the derivative of smooth forces behind, and integrates
      for (int k = 0; k < rows; ++k) {
        double *mu = at(a->mu, nv, world * rows + k), *velocity = at(a->velocity, nv, world * rows + k);
        for (int i = 0; i < nv; ++i)
          for (int e = m->D_rowadr[i]; e < m->D_rowadr[i] + m->D_rownnz[i]; ++e) velocity[m->D_colind[e]] += mu[i] * d->qDeriv[e];
      }
      for (int i = 0; i < nv; ++i) d->qvel[i] = qvel[i];
      for (int i = 0; i < m->na; ++i) d->act[i] = qpos[nq + i];
    }
    if (!a->position) return;
    Held held = {acceleration, rest, n, d->ncon};
    held.type = (int*)TAKE(n + d->ncon + 1);
    held.id = held.type + n;
    held.geoms = held.id + n;
    held.places = TAKE(3 * d->ncon + 1);
    held.zone = zone;
    for (int i = 0; i < n; ++i) { held.type[i] = d->efc_type[i]; held.id[i] = d->efc_id[i]; }
    for (int i = 0; i < d->ncon; ++i) {
      for (int k = 0; k < 2; ++k) held.geoms[2 * i + k] = d->contact[i].geom[k];
      for (int k = 0; k < 3; ++k) held.places[3 * i + k] = d->contact[i].pos[k];
    }
    double *r[3], *q[3], *unit = TAKE(3 * nv), *slope = unit + nv, *taken = slope + nv;  // back, here, forth
    for (int side = 0; side < 3; ++side) { r[side] = TAKE(2 * nv); q[side] = damped ? r[side] + nv : 0; }
    double move = n > d->nf ? a->real_bent_move : a->real_move;
    residual(a, m, d, held, r[1], q[1]);
    for (int i = 0; i < nv; ++i) unit[i] = 0;
    for (int j = 0; j < nv; ++j) {
      bool same[3] = {false, true, false};
      unit[j] = 1;
      for (int side = 0; side < 3; side += 2) {
        for (int i = 0; i < nq; ++i) d->qpos[i] = qpos[i];
        ((void (*)(const mjModel*, double*, const double*, double))a->mj_integratePos)(m, d->qpos, unit, (side - 1) * move);
        place(a, m, d, n > 0, !a->passive);
        same[side] = residual(a, m, d, held, r[side], q[side]);
      }
      unit[j] = 0;
      // a side on which a contact appears or goes is left out: what jumps there is no slope
      int from = same[0] || !same[2] ? 0 : 1, to = same[2] || !same[0] ? 2 : 1;
      double width = (to - from) * move;
      for (int i = 0; i < nv; ++i) { slope[i] = (r[to][i] - r[from][i]) / width; if (damped) taken[i] = (q[to][i] - q[from][i]) / width; }
      for (int k = 0; k < rows; ++k) {
        int row = world * rows + k;
        double s = Rows::dot(at(a->mu, nv, row), slope, nv);
        if (damped) s += Rows::dot(at(a->w, nv, row), taken, nv);
        at(a->position, nv, row)[j] += s;
      }
    }
  }
  // a number of which rows there are and how they act (FNV-1a)
  static void sign(const Arguments* a, const mjData* d, int world, const unsigned char* zone) {
    if (!a->signature) return;
    unsigned long long hash = 14695981039346656037ull;
    for (int i = 0; i < d->nefc; ++i) {
      hash = (hash ^ (unsigned long long)(d->efc_type[i] * 8 + zone[i])) * 1099511628211ull;
      if (d->efc_type[i] > mjCNSTR_LIMIT_TENDON) {
        const mjContact* c = d->contact + d->efc_id[i];
        hash = (hash ^ (unsigned long long)(c->geom[0] * 65536 + c->geom[1])) * 1099511628211ull;
      }
    }
    ((unsigned long long*)a->signature)[world] = hash;
  }
  // the integrator's inertia: M plus h times damping, and times what drives at joints take away
  static void dampen(const Arguments* a, const mjModel* m, const mjData* d, double* A) {
    int nv = m->nv;
    double h = m->opt.timestep;
    for (int i = 0; i < nv; ++i) A[i * nv + i] += h * m->dof_damping[i];
    for (int i = 0; i < m->nu && a->driven; ++i) {
      double force = d->actuator_force[i], gear = m->actuator_gear[6 * i];
      const double* range = m->actuator_forcerange + 2 * i;
      if (m->actuator_biastype[i] != mjBIAS_AFFINE || (m->actuator_forcelimited[i] && (force <= range[0] || force >= range[1]))) continue;
      A[m->jnt_dofadr[m->actuator_trnid[2 * i]] * (nv + 1)] -= h * gear * gear * m->actuator_biasprm[mjNBIAS * i + 2];
    }
  }
  // a cotangent of the next state as one of the next velocity, and what is left of it for the position before
  static void onto_velocity(const mjModel* m, const double* cotangent, const double* qvel, const double* acceleration, const double* rest,
                            double* onto, double* position) {
    int nv = m->nv;
    double h = m->opt.timestep;
    for (int i = 0; i < nv; ++i) onto[i] = cotangent[nv + i] + h * cotangent[i];
    for (int i = 0; i < nv && position; ++i) position[i] = cotangent[i];
    for (int j = 0; j < m->njnt; ++j) {
      if (m->jnt_type[j] != mjJNT_FREE && m->jnt_type[j] != mjJNT_BALL) continue;
      int v = m->jnt_dofadr[j] + (m->jnt_type[j] == mjJNT_FREE ? 3 : 0);
      double angle[3], turned[3], spread[3];
      for (int k = 0; k < 3; ++k) angle[k] = h * (qvel[v + k] + h * (acceleration[v + k] - rest[v + k]));
      turn(angle, cotangent + v, turned, spread);
      for (int k = 0; k < 3; ++k) {
        onto[v + k] = cotangent[nv + v + k] + h * spread[k];
        if (position) position[v + k] = turned[k];
      }
    }
  }
  // contact slopes of rows mu [rows, nv] of a world that has been solved
  static void contacts(const mjModel* m, mjData* d, int world, void* arguments) {
    const Arguments* a = (const Arguments*)arguments;
    if (!d->nefc) return;
    double* memory = TAKE(5 * d->nefc + d->nefc / 8 + 1);
    double *ja = memory, *jar = ja + d->nefc, *f = jar + d->nefc, *y = f + d->nefc, *z = y + d->nefc;
    unsigned char* zone = (unsigned char*)(z + d->nefc);
    Rows::times(m, d, at(a->acceleration, m->nv, world), ja);
    for (int i = 0; i < d->nefc; ++i) jar[i] = ja[i] - d->efc_aref[i];
    Rows::classify(d, jar, zone);
    Rows::forces(d, jar, zone, f);
    for (int k = 0; k < a->rows; ++k) {
      int row = world * (int)a->rows + k;
      Rows::times(m, d, at(a->mu, m->nv, row), y);
      Rows::slope(d, jar, zone, y, z);
      Contacts::Out geoms, pairs;
      outputs(a, m, row, &geoms, &pairs);
      Contacts::add(m, d, y, z, f, jar, ja, zone, geoms, pairs);
    }
  }
};
"""

TEXT = Arguments.text(ARGUMENTS) + _ROWS + _CONTACTS + _FUNCTIONS
NAMES = ("contacts", "pull")
