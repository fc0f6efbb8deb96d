"""Equations of motion of a robot in joint coordinates, as Warp kernels: H(q) v' = f - c(q, v) + contact.

Bodies come depth first, so that what a body carries is a range of bodies. All vectors are in the world frame and all
moments about its origin. Arrays are [N, B] by body or [N, D] by degree of freedom (dof); tables are [B] or [D].
Reference: R. Featherstone, Rigid Body Dynamics Algorithms (2008), chapters 5 and 6.
"""

import warp as wp

from torchrl_pwm.envs.simulators.newton.contact import ground_wrench

HINGE, BALL = wp.constant(1), wp.constant(2)


# Warp's backward pass of a kernel calls its functions again but skips its loops and its stores. So a sum over a loop
# that is multiplied with anything is a function, and what one kernel stores is read back by the next.


@wp.func
def sum_along(
    world: int, count: int, first: int, first_value: int, values: wp.array2d[float], direction: wp.array2d[wp.vec3]
) -> wp.vec3:
    """Sum of ``count`` values times the axes of the dofs from ``first`` on."""
    result = wp.vec3(0.0, 0.0, 0.0)
    for i in range(count):
        result += values[world, first_value + i] * direction[world, first + i]
    return result


@wp.func
def sum_over(world: int, begin: int, end: int, values: wp.array2d[wp.vec3]) -> wp.vec3:
    """Sum of the vectors of the bodies from ``begin`` to before ``end``."""
    result = wp.vec3(0.0, 0.0, 0.0)
    for body in range(begin, end):
        result += values[world, body]
    return result


@wp.kernel
def motion(
    q: wp.array2d[float],
    v: wp.array2d[float],
    parent: wp.array[int],
    offset: wp.array[wp.vec3],
    turn: wp.array[wp.quat],
    sliders: wp.array[int],
    rotary: wp.array[int],
    first_coordinate: wp.array[int],
    first_dof: wp.array[int],
    axis: wp.array[wp.vec3],
    position: wp.array2d[wp.vec3],
    rotation: wp.array2d[wp.quat],
    spin: wp.array2d[wp.vec3],
    speed: wp.array2d[wp.vec3],
    spin_bias: wp.array2d[wp.vec3],
    speed_bias: wp.array2d[wp.vec3],
    direction: wp.array2d[wp.vec3],
):
    """Pose and velocity of every body, its acceleration for v' = 0, and the axis of every dof."""
    world = wp.tid()
    for body in range(parent.shape[0]):
        above = parent[body]
        origin = wp.vec3(0.0, 0.0, 0.0)
        frame = turn[body]
        arm = offset[body]
        w = wp.vec3(0.0, 0.0, 0.0)
        u = wp.vec3(0.0, 0.0, 0.0)
        dw = wp.vec3(0.0, 0.0, 0.0)
        du = wp.vec3(0.0, 0.0, 0.0)
        if above >= 0:
            origin = position[world, above]
            frame = rotation[world, above] * turn[body]
            arm = wp.quat_rotate(rotation[world, above], offset[body])
            w = spin[world, above]
            u = speed[world, above]
            dw = spin_bias[world, above]
            du = speed_bias[world, above]
        for i in range(sliders[body]):
            direction[world, first_dof[body] + i] = wp.quat_rotate(frame, axis[first_dof[body] + i])
        arm = arm + sum_along(world, sliders[body], first_dof[body], first_coordinate[body], q, direction)
        slide = sum_along(world, sliders[body], first_dof[body], first_dof[body], v, direction)
        dof = first_dof[body] + sliders[body]
        coordinate = first_coordinate[body] + sliders[body]
        relative = wp.vec3(0.0, 0.0, 0.0)
        orientation = frame
        if rotary[body] == HINGE:
            about = wp.quat_rotate(frame, axis[dof])
            direction[world, dof] = about
            relative = v[world, dof] * about
            orientation = frame * wp.quat_from_axis_angle(axis[dof], q[world, coordinate])
        if rotary[body] == BALL:
            direction[world, dof] = wp.quat_rotate(frame, wp.vec3(1.0, 0.0, 0.0))
            direction[world, dof + 1] = wp.quat_rotate(frame, wp.vec3(0.0, 1.0, 0.0))
            direction[world, dof + 2] = wp.quat_rotate(frame, wp.vec3(0.0, 0.0, 1.0))
            relative = wp.quat_rotate(frame, wp.vec3(v[world, dof], v[world, dof + 1], v[world, dof + 2]))
            orientation = frame * wp.quat(
                q[world, coordinate], q[world, coordinate + 1], q[world, coordinate + 2], q[world, coordinate + 3]
            )
        whirl = wp.cross(w, arm)
        position[world, body] = origin + arm
        rotation[world, body] = orientation
        spin[world, body] = w + relative
        speed[world, body] = u + whirl + slide
        spin_bias[world, body] = dw + wp.cross(w, relative)
        speed_bias[world, body] = du + wp.cross(dw, arm) + wp.cross(w, whirl + 2.0 * slide)


@wp.kernel
def wrenches(
    position: wp.array2d[wp.vec3],
    rotation: wp.array2d[wp.quat],
    spin: wp.array2d[wp.vec3],
    speed: wp.array2d[wp.vec3],
    spin_bias: wp.array2d[wp.vec3],
    speed_bias: wp.array2d[wp.vec3],
    mass: wp.array[float],
    inertia: wp.array[wp.mat33],
    center: wp.array[wp.vec3],
    gravity: wp.vec3,
    first_sphere: wp.array[int],
    sphere_center: wp.array[wp.vec3],
    sphere_radius: wp.array[float],
    stiffness: float,
    damping: float,
    friction: float,
    slope: float,
    force: wp.array2d[wp.vec3],
    moment: wp.array2d[wp.vec3],
):
    """Force and moment that the joints must exert on every body for v' = 0, given gravity and the ground."""
    world, body = wp.tid()
    place = position[world, body]
    orientation = rotation[world, body]
    w = spin[world, body]
    dw = spin_bias[world, body]
    arm = wp.quat_rotate(orientation, center[body])
    f = mass[body] * (speed_bias[world, body] + wp.cross(dw, arm) + wp.cross(w, wp.cross(w, arm)) - gravity)
    own_w = wp.quat_rotate_inv(orientation, w)
    own_dw = wp.quat_rotate_inv(orientation, dw)
    own = inertia[body] * own_dw + wp.cross(own_w, inertia[body] * own_w)
    n = wp.quat_rotate(orientation, own) + wp.cross(place + arm, f)
    push = wp.spatial_vector()
    for sphere in range(first_sphere[body], first_sphere[body + 1]):
        reach = wp.quat_rotate(orientation, sphere_center[sphere]) - wp.vec3(0.0, 0.0, sphere_radius[sphere])
        velocity = speed[world, body] + wp.cross(w, reach)
        push += ground_wrench(place + reach, velocity, stiffness, damping, friction, slope)
    force[world, body] = f - wp.spatial_top(push)
    moment[world, body] = n - wp.spatial_bottom(push)


@wp.func
def body_response(
    is_linear: int, about: wp.vec3, pivot: wp.vec3, heart: wp.vec3, rotation: wp.quat, mass: float, inertia: wp.mat33
) -> wp.spatial_vector:
    """Force and moment that a unit acceleration along, or about, an axis needs of a body with center ``heart``."""
    if is_linear == 1:
        return wp.spatial_vector(mass * about, wp.cross(heart, mass * about))
    f = mass * wp.cross(about, heart - pivot)
    own = inertia * wp.quat_rotate_inv(rotation, about)
    return wp.spatial_vector(f, wp.quat_rotate(rotation, own) + wp.cross(heart, f))


@wp.func
def sum_responses(
    world: int,
    begin: int,
    end: int,
    is_linear: int,
    about: wp.vec3,
    pivot: wp.vec3,
    position: wp.array2d[wp.vec3],
    rotation: wp.array2d[wp.quat],
    mass: wp.array[float],
    inertia: wp.array[wp.mat33],
    center: wp.array[wp.vec3],
) -> wp.spatial_vector:
    """Responses of the bodies from ``begin`` to before ``end``."""
    result = wp.spatial_vector()
    for body in range(begin, end):
        turned = rotation[world, body]
        heart = position[world, body] + wp.quat_rotate(turned, center[body])
        result += body_response(is_linear, about, pivot, heart, turned, mass[body], inertia[body])
    return result


@wp.kernel
def mass_matrix(
    position: wp.array2d[wp.vec3],
    rotation: wp.array2d[wp.quat],
    direction: wp.array2d[wp.vec3],
    mass: wp.array[float],
    inertia: wp.array[wp.mat33],
    center: wp.array[wp.vec3],
    last: wp.array[int],
    dof_body: wp.array[int],
    is_linear: wp.array[int],
    moved: wp.array2d[int],
    h: wp.array3d[float],
):
    """Lower triangle of H [N, D, D]: row d is what the joints must exert for a unit acceleration of dof d."""
    world, dof = wp.tid()
    about = direction[world, dof]
    pivot = position[world, dof_body[dof]]
    first = dof_body[dof]
    response = sum_responses(
        world, first, last[first], is_linear[dof], about, pivot, position, rotation, mass, inertia, center
    )
    f = wp.spatial_top(response)
    n = wp.spatial_bottom(response)
    for other in range(dof + 1):
        pull = wp.dot(direction[world, other], f)
        twist = wp.dot(direction[world, other], n - wp.cross(position[world, dof_body[other]], f))
        chosen = wp.where(is_linear[other] == 1, pull, twist)
        h[world, dof, other] = wp.where(moved[other, dof] == 1, chosen, 0.0)


@wp.kernel(enable_backward=False)
def cholesky(h: wp.array3d[float], inertia: wp.array[float], factor: wp.array3d[float]):
    """Lower L with L L^T = H + diag(inertia). Its derivative is part of that of the solution."""
    world = wp.tid()
    size = h.shape[1]
    for j in range(size):
        s = h[world, j, j] + inertia[j]
        for k in range(j):
            s -= factor[world, j, k] * factor[world, j, k]
        root = wp.sqrt(s)
        factor[world, j, j] = root
        for i in range(j + 1, size):
            s = h[world, i, j]
            for k in range(j):
                s -= factor[world, i, k] * factor[world, j, k]
            factor[world, i, j] = s / root


@wp.func
def substitute(world: int, factor: wp.array3d[float], b: wp.array2d[float], x: wp.array2d[float]):
    """Writes x with L L^T x = b."""
    size = factor.shape[1]
    for i in range(size):
        s = b[world, i]
        for j in range(i):
            s -= factor[world, i, j] * x[world, j]
        x[world, i] = s / factor[world, i, i]
    for reverse in range(size):
        i = size - 1 - reverse
        s = x[world, i]
        for j in range(i + 1, size):
            s -= factor[world, j, i] * x[world, j]
        x[world, i] = s / factor[world, i, i]


@wp.func
def solve(
    world: int,
    h: wp.array3d[float],
    factor: wp.array3d[float],
    b: wp.array2d[float],
    work: wp.array2d[float],
    x: wp.array2d[float],
):
    """Writes x = H^-1 b, differentiable in H and b."""
    substitute(world, factor, b, x)


@wp.func_grad(solve)
def adj_solve(
    world: int,
    h: wp.array3d[float],
    factor: wp.array3d[float],
    b: wp.array2d[float],
    work: wp.array2d[float],
    x: wp.array2d[float],
):
    substitute(world, factor, wp.adjoint[x], work)
    for i in range(factor.shape[1]):
        wp.adjoint[x][world, i] = 0.0
        wp.adjoint[b][world, i] += work[world, i]
        for j in range(i):
            wp.adjoint[h][world, i, j] -= work[world, i] * x[world, j] + work[world, j] * x[world, i]
        wp.adjoint[h][world, i, i] -= work[world, i] * x[world, i]


@wp.kernel
def joint_forces(
    q: wp.array2d[float],
    v: wp.array2d[float],
    applied: wp.array2d[float],
    position: wp.array2d[wp.vec3],
    direction: wp.array2d[wp.vec3],
    force: wp.array2d[wp.vec3],
    moment: wp.array2d[wp.vec3],
    last: wp.array[int],
    sliders: wp.array[int],
    rotary: wp.array[int],
    first_coordinate: wp.array[int],
    first_dof: wp.array[int],
    lower: wp.array[float],
    upper: wp.array[float],
    limit: wp.array[float],
    damping: wp.array[float],
    total: wp.array2d[float],
):
    """Force that accelerates each dof: applied, damping and limit forces, less what its bodies need for v' = 0."""
    world, body = wp.tid()
    f = sum_over(world, body, last[body], force)
    n = sum_over(world, body, last[body], moment) - wp.cross(position[world, body], f)
    for i in range(sliders[body]):
        slider = first_dof[body] + i
        load = wp.dot(direction[world, slider], f)
        total[world, slider] = applied[world, slider] - load - damping[slider] * v[world, slider]
    dof = first_dof[body] + sliders[body]
    if rotary[body] == HINGE:
        angle = q[world, first_coordinate[body] + sliders[body]]
        excess = wp.max(angle - upper[dof], 0.0) - wp.max(lower[dof] - angle, 0.0)
        resistance = wp.dot(direction[world, dof], n) + limit[dof] * excess
        total[world, dof] = applied[world, dof] - resistance - damping[dof] * v[world, dof]
    if rotary[body] == BALL:
        for i in range(3):
            twist = wp.dot(direction[world, dof + i], n)
            total[world, dof + i] = applied[world, dof + i] - twist - damping[dof + i] * v[world, dof + i]


@wp.kernel
def advance(
    q: wp.array2d[float],
    v: wp.array2d[float],
    total: wp.array2d[float],
    h: wp.array3d[float],
    factor: wp.array3d[float],
    sliders: wp.array[int],
    rotary: wp.array[int],
    first_coordinate: wp.array[int],
    first_dof: wp.array[int],
    dt: float,
    work: wp.array2d[float],
    acceleration: wp.array2d[float],
    next_q: wp.array2d[float],
    next_v: wp.array2d[float],
):
    """State one solver step later: v from the accelerations, then q from the new v."""
    world = wp.tid()
    solve(world, h, factor, total, work, acceleration)
    for body in range(sliders.shape[0]):
        dof = first_dof[body]
        coordinate = first_coordinate[body]
        moves = sliders[body]
        if rotary[body] == HINGE:
            moves = moves + 1
        for i in range(moves):
            rate = v[world, dof + i] + dt * acceleration[world, dof + i]
            next_v[world, dof + i] = rate
            next_q[world, coordinate + i] = q[world, coordinate + i] + dt * rate
        if rotary[body] == BALL:
            dof = dof + moves
            coordinate = coordinate + moves
            wx = v[world, dof] + dt * acceleration[world, dof]
            wy = v[world, dof + 1] + dt * acceleration[world, dof + 1]
            wz = v[world, dof + 2] + dt * acceleration[world, dof + 2]
            old = wp.quat(
                q[world, coordinate], q[world, coordinate + 1], q[world, coordinate + 2], q[world, coordinate + 3]
            )
            new = wp.normalize(old + 0.5 * dt * (wp.quat(wx, wy, wz, 0.0) * old))
            next_v[world, dof] = wx
            next_v[world, dof + 1] = wy
            next_v[world, dof + 2] = wz
            next_q[world, coordinate] = new[0]
            next_q[world, coordinate + 1] = new[1]
            next_q[world, coordinate + 2] = new[2]
            next_q[world, coordinate + 3] = new[3]
